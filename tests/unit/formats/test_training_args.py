"""training_args.bin: values without unpickling a class."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from transformers import TrainingArguments

from vlmrun.errors import CheckpointError
from vlmrun.formats.training_args import read


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def test_values_of_the_trainers_own_file(tmp_path):
    made = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        learning_rate=3e-5,
        max_steps=7,
        lr_scheduler_type="cosine",
        report_to="none",
        use_cpu=True,
    )
    torch.save(made, tmp_path / "training_args.bin")
    found = read(tmp_path / "training_args.bin")
    assert (found["learning_rate"], found["max_steps"], found["lr_scheduler_type"]) == (3e-5, 7, "cosine")
    assert found["save_strategy"] == "steps"


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"a": 1})])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "training_args.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"training_args\.bin"):
        read(tmp_path / "training_args.bin")


def test_nothing_that_a_file_names_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Hostile(), "training_args.bin")
    with pytest.raises(CheckpointError):
        read(tmp_path / "training_args.bin")
    assert not (tmp_path / "hacked").exists()
