"""Values that differ, by key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmrun.compare.values import ABSENT, Change, changes

_PLAIN = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_infinity=False) | st.text(max_size=2)
_NAMES = st.text("abc", min_size=1, max_size=1)
_VALUES = st.recursive(
    _PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3), max_leaves=12
)


@given(st.dictionaries(_NAMES, _VALUES))
def test_nothing_differs_from_itself(values):
    assert changes(values, values) == []


@given(st.dictionaries(_NAMES, _VALUES), st.dictionaries(_NAMES, _VALUES))
def test_both_directions_agree(first, second):
    there, back = changes(first, second), changes(second, first)
    assert {each.key for each in there} == {each.key for each in back}
    by_key = {each.key: each for each in back}
    for each in there:
        assert repr((by_key[each.key].second, by_key[each.key].first)) == repr((each.first, each.second))


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, [Change("a.b", 1, 2)]),
        ({"a": {"b": {"c": 1}}}, {"a": {}}, [Change("a.b", {"c": 1}, ABSENT)]),
        ({"a": [1, 2]}, {"a": [1, 3]}, [Change("a", [1, 2], [1, 3])]),
        ({"a": [{"n": 1}, {"n": 2}]}, {"a": [{"n": 1}, {"n": 3}]}, [Change("a[1].n", 2, 3)]),
        ({"a": 1}, {"a": 1.0}, [Change("a", 1, 1.0)]),
        ({"a": True}, {"a": 1}, [Change("a", True, 1)]),
        ({"a": None}, {}, [Change("a", None, ABSENT)]),
    ],
)
def test_a_change_is_named(first, second, found):
    assert changes(first, second) == found
