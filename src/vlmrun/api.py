"""vlmrun from Python: what the commands do, as functions that return values. Guide: docs/guides/python.md.

from vlmrun import api
api.run("+recipe=smoke")
api.load("average").ask("How many circles are there?", "image.png")

Every error is a `vlmrun.errors.VlmrunError`, with the problems that the command would print.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vlmrun import artifact, back, logs, store
from vlmrun.checks import rules
from vlmrun.cli import train
from vlmrun.config.schema import RunConfig
from vlmrun.errors import CheckpointError, ConfigError, DataError, Problem
from vlmrun.names import METRICS
from vlmrun.run import numbers, record

if TYPE_CHECKING:
    from PIL.Image import Image

log = logs.get(__name__)

_CONFIG = "config.yaml"


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        kind: train, merge, average, evaluate, ...
        summary: its numbers: loss, accuracy, steps, ...
        created: ISO 8601.
    """

    name: str
    key: str
    kind: str
    created: str
    folder: Path
    summary: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run below an output root.

    Attributes:
        values: its composed config.
        stages: those that are finished, by name.
        report: its page; None: none was written yet.
    """

    name: str
    folder: Path
    values: dict[str, Any]
    stages: dict[str, Stage]
    report: Path | None


class Model:
    """A model that answers; made by `load`."""

    def __init__(self, folder: Path, answer: Callable[[str, Sequence[Any], bool], str]) -> None:
        self.folder = folder
        self._answer = answer

    def ask(self, text: str, *images: str | Path | Image, follow_up: bool = False) -> str:
        """Answers a question about images.

        Args:
            images: files, or images of Pillow.
            follow_up: the question belongs to the ones before; otherwise these are forgotten.

        Raises:
            DataError: when an image cannot be read, or the conversation has become too long.
        """
        return self._answer(text, images, follow_up)


def compose(*overrides: str, config_dir: str | Path | None = None) -> RunConfig:
    """The run that overrides describe, typed and complete, as `--cfg job` prints it.

    Args:
        config_dir: a folder of your own that is laid out like `conf/`.

    Raises:
        ConfigError: with every problem of names, values and types.
    """
    return train.compose(overrides, _dirs(config_dir))


def check(*overrides: str, config_dir: str | Path | None = None) -> list[Problem]:
    """Every problem of a run, as `vlmrun check` prints them; empty when there is none. Nothing is loaded."""
    try:
        return rules.check(compose(*overrides, config_dir=config_dir))
    except ConfigError as error:
        return error.problems


def run(*overrides: str, config_dir: str | Path | None = None) -> Run:
    """Runs what is missing of a run, in processes of its own, and returns when it is finished.

    Raises:
        VlmrunError: the first stage's error; what was finished before it stays finished.
    """
    logs.setup()
    done = train.run(overrides, _dirs(config_dir))
    return _run(done.folder)


def runs(output: str | Path | None = None) -> list[Run]:
    """All runs below an output root, points of sweeps too, by name; what cannot be read is reported and left out.

    Args:
        output: default: `VLMRUN_OUTPUT`, or `outputs`.
    """
    root = _root(output)
    files = [file for pattern in (f"*/{_CONFIG}", f"*/*/{_CONFIG}") for file in (root / "runs").glob(pattern)]
    # Links lead to the newest run of a name, which has a folder of its own; earlier versions wrote no record.
    own = {file.parent for file in files if not any(path.is_symlink() for path in (file, *file.parents[:2]))}
    found = []
    for folder in {folder for folder, _ in record.all_of(root)} | own:
        try:
            found.append(_run(folder))
        except CheckpointError as error:
            log.warning("%s", error)
    return sorted(found, key=lambda run: (run.name, run.folder.parent, _number(run.folder)))


def artifacts(output: str | Path | None = None) -> list[Stage]:
    """All finished stages below an output root, oldest first."""
    return [_stage(folder, made) for folder, made in store.artifacts(_root(output))]


def metrics(stage: str | Path | Stage, output: str | Path | None = None) -> list[dict[str, Any]]:
    """A train stage's numbers, one dict for each update: step, loss, lr, grad_norm, ... `pandas.DataFrame` takes it.

    Args:
        stage: a `Stage`, or a stage's name, key, `name-key` or folder.

    Raises:
        CheckpointError: when there is no such stage.
        DataError: when it is no train stage.
    """
    folder = stage.folder if isinstance(stage, Stage) else store.find(_root(output), str(stage))
    file = folder / METRICS
    if not file.is_file():
        raise DataError("the stage has no metrics", str(folder), "name a stage that trains")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def load(
    reference: str | Path | Stage,
    *,
    output: str | Path | None = None,
    dtype: str = "auto",
    attention: str = "sdpa",
    bits: int | None = None,
    max_new_tokens: int = 64,
) -> Model:
    """Loads a model as it was saved, on a GPU if there is one. It answers greedily.

    Args:
        reference: a `Stage`, a stage's name (the newest one is taken), key, `name-key`, or the folder of a model in any
            format that `vlmrun convert` reads.
        dtype: auto (bf16 on a GPU, fp32 on a CPU), fp32, bf16 or fp16.
        bits: 4 or 8 quantizes the LLM's linear layers.

    Raises:
        CheckpointError: when there is no such model, or it cannot be loaded.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = reference.folder if isinstance(reference, Stage) else store.find(_root(output), str(reference))
    how = argparse.Namespace(
        dtype=dtype, attention=attention, bits=bits, max_new_tokens=max_new_tokens,
        temperature=0.0, top_p=1.0, top_k=0, seed=None, repetition_penalty=1.0,
    )  # fmt: skip
    return Model(folder, back.answerer(folder, how))


def _dirs(config_dir: str | Path | None) -> list[Path]:
    return [] if config_dir is None else [Path(config_dir)]


def _root(output: str | Path | None) -> Path:
    return Path(output if output is not None else os.environ.get("VLMRUN_OUTPUT", "outputs")).expanduser()


def _number(folder: Path) -> int:
    return int(folder.name) if folder.name.isdecimal() else 0


def _run(folder: Path) -> Run:
    """A run's folder, with those of its stages that can be read.

    Raises:
        CheckpointError: when its configuration cannot be read.
    """
    try:
        values = yaml.safe_load((folder / _CONFIG).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{_CONFIG} cannot be read: {error}", str(folder), "run it again to write it") from error
    values = values if isinstance(values, dict) else {}
    stages: dict[str, Stage] = {}
    for place in sorted((folder / "stages").glob("*")):
        try:
            made = artifact.read(place.resolve())
        except CheckpointError as error:
            log.warning("%s", error)
            continue
        if made is not None:
            stages[made.name] = _stage(place.resolve(), made)
    report = numbers.report(folder)
    return Run(str(values.get("name", folder.name)), folder, values, stages, report if report.is_file() else None)


def _stage(folder: Path, made: artifact.Artifact) -> Stage:
    return Stage(made.name, made.key, made.kind, made.created, folder, dict(made.summary))
