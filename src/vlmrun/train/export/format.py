"""Training checkpoints as a format (`formats.base.Format`). The trainer is loaded only when one is read."""

from __future__ import annotations

from pathlib import Path

from vlmrun.config.job import JOB_FILE
from vlmrun.errors import Problem
from vlmrun.formats.base import How, Model
from vlmrun.train.checkpoint.commit import MANIFEST


def detect(folder: Path) -> bool:
    """Whether it is a step's folder within a stage's."""
    return (folder / MANIFEST).is_file() and (folder.parent.parent / JOB_FILE).is_file()


def read(folder: Path, how: How) -> Model:
    """The model as it was at that step (`model.read`)."""
    from vlmrun.train.export import model

    return model.read(folder, how)


def refuse(model: Model, how: How) -> list[Problem]:
    """Training writes it."""
    return [Problem("training checkpoints are written by training only", "", "--to native")]
