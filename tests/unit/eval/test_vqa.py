import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmrun.eval.vqa import is_match, score


def row(answer, expected, category="colour", split="seen"):
    return {"answer": answer, "expected": expected, "category": category, "split": split}


def test_match_ignores_case_and_surrounding_space():
    assert is_match(row(" Red\n", "red"))
    assert not is_match(row("red.", "red"))
    assert not is_match(row("", "red"))


def test_scores():
    rows = [
        row("red", "red"),
        row("red", "red"),
        row("red", "blue"),
        row("star", "star", "shape"),
        row("x", "green", "colour", "unseen"),
    ]
    control = [row("x", "red"), row("red", "red"), row("x", "blue"), row("x", "star", "shape")]
    found = score(rows, control)
    assert found["n_questions"] == 5
    seen = found["seen"]
    assert (seen["n_questions"], seen["accuracy"], seen["shuffled"]) == (4, 0.75, 0.25)
    assert seen["chance"] == pytest.approx((2 / 3 * 3 + 1) / 4)
    assert seen["categories"]["colour"] == {
        "n_questions": 3,
        "accuracy": pytest.approx(2 / 3),
        "chance": pytest.approx(2 / 3),
        "shuffled": pytest.approx(1 / 3),
    }
    assert (found["unseen"]["accuracy"], found["unseen"]["shuffled"]) == (0.0, None)
    assert set(found["splits"]) == {"seen", "unseen"}
    assert found["splits"]["seen"] == seen


def test_without_unseen_or_control():
    found = score([row("a", "a", split="test")])
    assert found["unseen"] is None
    assert found["seen"]["shuffled"] is None
    assert score([row("a", "a", split="unseen")])["seen"] is None


rows = st.builds(
    row,
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["a", "b", "A "]),
    st.sampled_from(["x", "y"]),
    st.sampled_from(["seen", "test", "unseen"]),
)


@given(st.lists(rows, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_scores_do_not_depend_on_order_and_stay_in_range(answers, rng: random.Random):
    shuffled = rng.sample(answers, len(answers))
    found = score(answers, answers)
    other = score(shuffled, shuffled)
    for name in ("seen", "unseen"):
        group = found[name]
        if group is None:
            assert other[name] is None
            continue
        assert group["accuracy"] == group["shuffled"] == other[name]["accuracy"]
        assert group["chance"] == pytest.approx(other[name]["chance"])
        assert 0 < group["chance"] <= 1
        assert sum(part["n_questions"] for part in group["categories"].values()) == group["n_questions"]
    assert sum(group["n_questions"] for group in found["splits"].values()) == len(answers)
