"""What a run's stages left behind, as the rules want it. A file that is missing or torn counts as empty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlmrun import artifact, jsonl
from vlmrun.config.job import JOB_FILE, StageJob
from vlmrun.config.schema import BenchmarkConfig, EvaluateStage, TrainStage
from vlmrun.data import ledger_rows
from vlmrun.errors import CheckpointError
from vlmrun.eval import statistics
from vlmrun.eval.statistics import Interval
from vlmrun.eval.vqa import is_match
from vlmrun.names import ANSWERS, HELD_OUT, LEDGER, METRICS, MODEL, SCORES, SHUFFLED, WEIGHTS

Rows = Sequence[dict[str, Any]]
_ANSWERED = ("expected", "answer", "question_id", "data")


@dataclass(frozen=True)
class Training:
    """A train stage, finished or not.

    Attributes:
        rows: of metrics.jsonl.
        held_out: rows of eval.jsonl.
    """

    name: str
    job: StageJob
    stage: TrainStage
    summary: dict[str, Any]
    rows: Rows
    held_out: Rows

    @cached_property
    def cut(self) -> tuple[int, int]:
        """Records whose end was cut off, of those that were used; none of a ledger that is missing or damaged."""
        try:
            used = [bool(row.get("truncated")) for row in ledger_rows.read(self.job.path / LEDGER) if row.get("used")]
        except (AttributeError, CheckpointError, OSError):
            used = []
        return sum(used), len(used)

    @cached_property
    def losses(self) -> list[float]:
        """Losses of the updates that had one."""
        return [row["loss"] for row in self.rows if isinstance(row.get("loss"), int | float)]

    def loss(self, start: float, end: float) -> float | None:
        """Mean loss between two shares of all updates."""
        n = len(self.losses)
        part = self.losses[int(n * start) : max(int(n * start) + 1, int(n * end))]
        return sum(part) / len(part) if part else None


@dataclass(frozen=True)
class Evaluation:
    """An evaluate stage that asked plain questions; benchmarks have no chance level of their own.

    Attributes:
        chance: what always giving the most frequent answer scores.
        shuffled: answers to the same questions about other images.
        model: the description of the model that was asked (`model.json`).
    """

    name: str
    job: StageJob
    stage: EvaluateStage
    answers: Rows
    chance: float
    shuffled: Rows = ()
    model: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def right(self) -> list[bool]:
        """Whether each answer is right."""
        return [is_match(row) for row in self.answers]

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return sum(self.right) / len(self.right)

    @cached_property
    def interval(self) -> Interval:
        """Of the accuracy, 95 %, by drawing images."""
        found = statistics.interval([float(each) for each in self.right], _images(self.answers))
        return found or Interval(0.0, 1.0)

    @property
    def fails(self) -> bool:
        """Whether the accuracy is not above chance."""
        return self.interval.low <= self.chance

    @cached_property
    def looking(self) -> tuple[float, Interval] | None:
        """Accuracy on shuffled images, and the interval of what the own images gain; None: no such control."""
        others = {(row["data"], row["question_id"]): is_match(row) for row in self.shuffled}
        pairs = [(row, others.get((row["data"], row["question_id"]))) for row in self.answers]
        known = [(row, other) for row, other in pairs if other is not None]
        if not known:
            return None
        gains = [float(is_match(row)) - float(other) for row, other in known]
        found = statistics.interval(gains, _images([row for row, _ in known]))
        return sum(other for _, other in known) / len(known), found or Interval(-1.0, 1.0)


@dataclass(frozen=True)
class Case:
    """A run as the rules see it.

    Attributes:
        error: what ended the run, as it was printed.
    """

    trainings: tuple[Training, ...]
    evaluations: tuple[Evaluation, ...]
    error: str | None = None

    @property
    def fails(self) -> bool:
        """Whether an evaluation is not above chance."""
        return any(one.fails for one in self.evaluations)

    @property
    def ended(self) -> Case:
        """Without evaluations of models that a training starts from: those are expected to be better later."""
        begun = {training.stage.init_from for training in self.trainings}
        return replace(self, evaluations=tuple(one for one in self.evaluations if one.stage.init_from not in begun))

    def asked(self, training: Training) -> list[Evaluation]:
        """Evaluations of the model that a training made."""
        return [one for one in self.evaluations if one.stage.init_from in (training.name, training.job.folder)]


def read(folders: Sequence[Path], error: str | None = None) -> Case:
    """The evidence in stage folders, in this order."""
    trainings: list[Training] = []
    evaluations: list[Evaluation] = []
    for folder in folders:
        try:
            job = StageJob.read(folder / JOB_FILE)
        except (OSError, ValueError, ValidationError):
            continue  # a stage of a plugin or of another version
        if isinstance(job.stage, TrainStage):
            rows, held_out = list(jsonl.rows(folder / METRICS)), list(jsonl.rows(folder / HELD_OUT))
            trainings.append(Training(job.name, job, job.stage, _summary(folder), rows, held_out))
        elif isinstance(job.stage, EvaluateStage):
            found = _evaluation(folder, job, job.stage)
            evaluations += [] if found is None else [found]
    return Case(tuple(trainings), tuple(evaluations), error)


def _evaluation(folder: Path, job: StageJob, stage: EvaluateStage) -> Evaluation | None:
    group = artifact.read_object(folder / SCORES).get("seen")
    chance = group.get("chance") if isinstance(group, dict) else None
    plain = [name for name in stage.data if name in job.data and not isinstance(job.data[name], BenchmarkConfig)]
    answers, shuffled = (
        [
            row
            for row in jsonl.rows(folder / name)
            if row.get("data") in plain and row.get("split") != "unseen" and row.get("expected")
            and all(isinstance(row.get(key), str) for key in _ANSWERED)
        ]
        for name in (ANSWERS, SHUFFLED)
    )  # fmt: skip
    if not answers or not isinstance(chance, int | float):
        return None
    parent = Path(next(iter(job.parents.values()), ""))
    return Evaluation(job.name, job, stage, answers, chance, shuffled, artifact.read_object(parent / WEIGHTS / MODEL))


def _summary(folder: Path) -> dict[str, Any]:
    try:
        found = artifact.read(folder)
    except CheckpointError:
        return {}
    return found.summary if found is not None else {}


def _images(rows: Rows) -> list[str]:
    return [str(row.get("image") or row["question_id"]) for row in rows]
