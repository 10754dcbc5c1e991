"""ScienceQA's two files as LLaVA records."""

import json

import pytest

from vlmrun.data.formats import llava
from vlmrun.data.prepare import scienceqa
from vlmrun.data.sample import Rejected
from vlmrun.errors import DataError

PROBLEMS = {
    "7": {
        "question": "Which is  the magnet?", "choices": ["iron", "wood"], "answer": 0, "hint": "Look closely.",
        "image": "image.png", "lecture": "Magnets pull.\nSome push.", "solution": "Iron is magnetic.",
    },
    "9": {
        "question": "Two plus two?", "choices": ["3", "4", "5"], "answer": 1, "hint": "", "image": None,
        "lecture": "", "solution": "",
    },
}  # fmt: skip


@pytest.fixture
def base(tmp_path):
    (tmp_path / "problems.json").write_text(json.dumps(PROBLEMS))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"train": ["9", "7"], "test": []}))
    return tmp_path


def texts(record):
    return [message["value"] for message in record["conversations"]]


def test_qcm_lea(base):
    second, first = scienceqa.convert(base, "train", "QCM-LEA")
    assert (first["id"], second["id"]) == ("7", "9")
    assert first["image"] == "7/image.png"
    assert texts(first) == [
        "Which is the magnet?\nContext: Look closely.\nOptions: (A) iron (B) wood\n<image>",
        "Magnets pull.\nSome push. Iron is magnetic. The answer is A.",
    ]
    assert "image" not in second
    assert texts(second) == ["Two plus two?\nContext: N/A\nOptions: (A) 3 (B) 4 (C) 5", "The answer is B."]


def test_qcm_lepa_leaves_out_what_is_missing(base):
    second, first = scienceqa.convert(base, "train", "QCM-LEPA", escape_newlines=True)
    assert texts(first)[1] == "LECTURE: Magnets pull.\\nSome push.\nSOLUTION: Iron is magnetic.\n###\nANSWER: A."
    assert texts(second)[1] == "###\nANSWER: B."


@pytest.mark.parametrize(
    ("prompt_format", "question", "answer"),
    [
        ("CQM-A", "Context: N/A\nQuestion: Two plus two?\nOptions: (A) 3 (B) 4 (C) 5", "The answer is B."),
        ("QCML-AL", "Two plus two?\nContext: N/A\nOptions: (A) 3 (B) 4 (C) 5", "The answer is B."),
        ("QCLM-AE", "Two plus two?\nContext: N/A\nBECAUSE: \nOptions: (A) 3 (B) 4 (C) 5", "The answer is B."),
    ],
)
def test_a_missing_reason_leaves_no_because_at_the_end(base, prompt_format, question, answer):
    assert texts(scienceqa.convert(base, "train", prompt_format)[0]) == [question, answer]


@pytest.mark.parametrize("prompt_format", ["QCME-EA", "QCMLE-ELA", "QCEM-ALE", "QCLEM-AEL", "QCM-LA"])
def test_every_format_makes_usable_records(base, prompt_format):
    for record in scienceqa.convert(base, "train", prompt_format):
        assert not isinstance(llava.parse(record, ("file", 0)), Rejected)
        assert "The answer is" in texts(record)[1]


@pytest.mark.parametrize(
    ("split", "prompt_format", "said"),
    [
        ("trian", "QCM-A", "did you mean 'train'"),
        ("train", "QCM-LEB", "did you mean 'QCM-LEA'"),
        ("train", "x", "OUTPUT"),
    ],
)
def test_wrong_names_are_told_with_the_nearest(base, split, prompt_format, said):
    with pytest.raises(DataError, match=said):
        scienceqa.convert(base, split, prompt_format)


def test_files_that_are_not_scienceqa(base, tmp_path):
    (base / "problems.json").write_text(json.dumps({"7": {}, "9": {}}))
    with pytest.raises(DataError, match="problem 9"):
        scienceqa.convert(base, "train", "QCM-A")
    (base / "problems.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        scienceqa.convert(base, "train", "QCM-A")
    with pytest.raises(DataError, match="lupantech"):
        scienceqa.convert(tmp_path / "nowhere", "train", "QCM-A")
