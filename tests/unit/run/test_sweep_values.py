"""Values of a sweep: counted before they are listed, and refused with their place when they cannot be."""

import pytest

from vlmrun.errors import ConfigError
from vlmrun.run.sweep import MOST, expand


def test_every_combination_is_a_point():
    points = expand(["a=1,2", "b=3", "c=range(0,4,2)"])
    assert [own for _, own in points] == [["a=1", "c=0"], ["a=1", "c=2"], ["a=2", "c=0"], ["a=2", "c=2"]]
    assert all(point[1] == "b=3" for point, _ in points)


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("a=range(0,10,0)", "cannot be listed: range"),
        ("a=range(nan,3)", "no numbers to count with"),
        ("a=range(5,1)", "no value at all"),
        ("a=glob(*)", "a pattern names no values"),
        ("a=interval(0,1)", "an interval has no points"),
    ],
)
def test_values_that_are_none_are_refused_with_their_place(word, what):
    with pytest.raises(ConfigError, match=what) as caught:
        expand([word])
    assert word in caught.value.problems[0].where


TOO_MANY = (["a=range(0,1000000000)"], ["a=range(0,1,1e-9)"], ["a=range(0,200)", "b=range(0,200)"])


@pytest.mark.parametrize("words", TOO_MANY)
def test_too_many_points_are_refused_at_once(words):
    with pytest.raises(ConfigError, match=f"{MOST:,} are the most"):
        expand(words)
