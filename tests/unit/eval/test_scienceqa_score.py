"""Which letter an answer means, and the score."""

import pytest

from vlmrun.eval.scienceqa import FAILED, letter, score

PROBLEMS = {
    "1": {"choices": ["x", "y"], "answer": 1, "image": "image.png"},
    "2": {"choices": ["x", "y", "z"], "answer": 2, "image": None},
    "3": {"choices": ["x", "y"], "answer": 0, "image": None},
}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("B", "B"),
        (" B\n", "B"),
        ("C. because", "C"),
        ("It rolls. The answer is A.", "A"),
        ("The answer is A. No: The answer is B.", FAILED),
        ("F", FAILED),
        ("", FAILED),
        ("The answer is A", FAILED),
        ("The answer is Apple.", FAILED),
    ],
)
def test_letter(text, found):
    assert letter(text) == found


def test_upstream_reads_any_character_as_a_full_stop():
    assert letter("The answer is Apple.", upstream=True) == "A"
    assert letter(" B", upstream=True) == FAILED


def test_score_counts_what_is_missing_as_wrong():
    found = score(PROBLEMS, ["1", "2", "3"], {"1": {"text": "B"}, "2": {"text": "The answer is E."}})
    assert (found["correct"], found["count"], found["acc"]) == (1, 3, pytest.approx(100 / 3))
    assert (found["image_correct"], found["image_count"], found["image_acc"]) == (1, 1, 100.0)
    assert (found["unreadable"], found["unanswered"]) == (1, 1)
    assert found["results"] == {"1": 1, "2": -1, "3": -1}
    assert found["outputs"]["3"] == FAILED


def test_the_prompt_kept_with_an_answer_tells_whether_it_saw_a_picture():
    found = score(PROBLEMS, ["2"], {"2": {"text": "C", "prompt": "<image>\nWhich?"}})
    assert found["image_count"] == 1
    assert score({}, [], {})["acc"] is None
