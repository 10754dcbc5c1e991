"""What evaluations during training found, on disk: `eval.jsonl` and `samples.jsonl`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmrun import artifact, jsonl
from vlmrun.names import HELD_OUT, SAMPLES
from vlmrun.train import dist


@dataclass(frozen=True)
class Score:
    """One evaluation.

    Args:
        loss: None without held-out data other than benchmarks.
        exact_match: None when no answer was generated.
        benchmarks: the score of each; None where it is not defined.
    """

    step: int
    loss: float | None
    exact_match: float | None
    supervised_tokens: int
    samples: int
    seconds: float
    benchmarks: dict[str, float | None] = field(default_factory=dict)

    @property
    def numbers(self) -> dict[str, float]:
        """What a curve is drawn of."""
        known = {"loss": self.loss, "exact_match": self.exact_match, **self.benchmarks}
        return {name: value for name, value in known.items() if value is not None}

    @property
    def line(self) -> str:
        """`held-out loss 0.412, 12.5% of the answers right, pope 0.71` in few words."""
        said = [] if self.loss is None else [f"held-out loss {self.loss:.4f}"]
        said += [] if self.exact_match is None else [f"{self.exact_match:.1%} of the answers right"]
        said += [f"{name} {'not defined' if x is None else f'{x:.4g}'}" for name, x in self.benchmarks.items()]
        return f"step {self.step}: {', '.join(said)} ({self.seconds:.1f} s)"


class Record:
    """What evaluations found: `eval.jsonl` and `samples.jsonl`, continued on resume; only rank 0 writes.

    Both are small, and `keep_best` relies on the first: they are written whole, synced and renamed.
    """

    def __init__(self, folder: Path, done: int) -> None:
        """Args: done: steps of the checkpoint that a run resumes from; later rows are removed."""
        self._scores = [row for row in read(folder / HELD_OUT) if row["step"] <= done]
        self._samples = [row for row in read(folder / SAMPLES) if row["step"] <= done]
        self._folder = folder
        self._write()

    @property
    def scores(self) -> list[Score]:
        """All of them, in order."""
        return [Score(**row) for row in self._scores]

    def add(self, score: Score, samples: list[dict[str, Any]]) -> None:
        """Appends one evaluation."""
        row = asdict(score)
        self._scores.append(row if score.benchmarks else {key: row[key] for key in row if key != "benchmarks"})
        self._samples += samples
        self._write()

    def has(self, step: int) -> bool:
        """Whether the model of a step has been evaluated."""
        return any(row["step"] == step for row in self._scores)

    def best(self, by: str) -> int | None:
        """The step of the best evaluation so far, the first of equal ones; the model before training is none."""
        known = [(number, step) for step, number in self._numbers(by) if step > 0 and not math.isnan(number)]
        return min(known)[1] if known else None

    def without_gain(self, by: str, least: float) -> int:
        """How many evaluations in a row, the last one included, were not better by `least` than the best before them.

        One that is not a number is never better; one without a score tells nothing and is passed over.
        """
        best, missed = math.inf, 0
        for step, number in self._numbers(by):
            if step == 0:
                continue
            missed = 0 if number < best - least else missed + 1
            best = min(best, number) if missed == 0 else best
        return missed

    def _numbers(self, by: str) -> list[tuple[int, float]]:
        """Step and number of every evaluation that has it; lower is better."""
        sign = 1 if by == "loss" else -1
        return [(score.step, sign * score.numbers[by]) for score in self.scores if by in score.numbers]

    def of(self, step: int) -> dict[str, Any] | None:
        """The row of a step."""
        return next((row for row in self._scores if row["step"] == step), None)

    def _write(self) -> None:
        if dist.is_main() and (self._scores or (self._folder / HELD_OUT).is_file()):
            for name, rows in ((SAMPLES, self._samples), (HELD_OUT, self._scores)):
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                artifact.write_text(self._folder / name, text)


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of `Record`; none when there is no file."""
    return [json.loads(line) for line in jsonl.lines(path)]
