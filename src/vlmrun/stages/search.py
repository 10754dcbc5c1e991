"""Stage kind `search`: averages at several points, each asked the same questions; the best one is kept."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from vlmrun import artifact, jsonl, logs
from vlmrun.config import derived
from vlmrun.config.job import StageJob
from vlmrun.config.schema import AverageStage, SearchStage
from vlmrun.data.reading import list_skipped
from vlmrun.errors import DataError
from vlmrun.eval import cards
from vlmrun.eval.asked import Asked
from vlmrun.eval.progress import progress
from vlmrun.eval.vqa import score
from vlmrun.merging import average as weights
from vlmrun.names import ANSWERS, BEST, POINTS, SKIPPED, WEIGHTS
from vlmrun.outcome import Result
from vlmrun.stages import average, evaluate

log = logs.get(__name__)

_TRIAL = "trial"  # the model of one point: written, asked, removed


def execute(job: StageJob) -> Result | None:
    """Writes points.jsonl, a row as soon as a point is scored, then the best one's weights; None on ranks above 0.

    Raises:
        DataError: when questions cannot be asked, or none of them counts for the score.
        CheckpointError: when the models do not fit together.
    """
    assert isinstance(job.stage, SearchStage)
    if int(os.environ.get("RANK", "0")) > 0:
        return None
    began = time.monotonic()
    points = derived.points(job.stage)
    average.check(points[0], job.parents)  # what does not fit is reported before the first model is written
    rows = _scored(job, points)
    best = max(rows, key=lambda row: row["score"])  # of equals the first
    log.info("best of %d points: %s with %s %.1f%%", len(rows), label(best), job.stage.score, 100 * best["score"])
    average.make(points[best["point"]], job.parents, job.path)
    artifact.write_json(job.path / BEST, best)
    kept = {name: best[name] for name in ("accuracy", "accuracy_unseen", "chance", "n_questions")}
    summary = kept | {"points": len(rows), "best": label(best), "seconds": round(time.monotonic() - began, 3)}
    present = [name for name in (WEIGHTS, POINTS, BEST, SKIPPED) if (job.path / name).exists()]
    return Result(summary, roots=tuple(present))


def label(row: dict[str, Any]) -> str:
    """A point in a few words."""
    numbers = [f"{name} {value:g}" for name, value in row["parameters"].items()]
    return ", ".join(["/".join(f"{weight:g}" for weight in row["weights"]), *numbers])


def _scored(job: StageJob, points: list[AverageStage]) -> list[dict[str, Any]]:
    """A row for every point; those that an interrupted attempt scored are taken from its file."""
    file = job.path / POINTS
    rows = [row for row in _read(file) if row["point"] < len(points)]
    artifact.write_text(file, "".join(_line(row) for row in rows))
    known = {row["point"] for row in rows}
    if known:
        log.info("%d of %d points were scored before", len(known), len(points))
    asked = evaluate.questions(job)
    with file.open("a", encoding="utf-8") as handle:
        for number, point in enumerate(points):
            if number in known:
                continue
            row = _try(job, number, point, asked)
            handle.write(_line(row))
            handle.flush()
            os.fsync(handle.fileno())
            rows.append(row)
            log.info("point %d of %d: %s, %.1f%%", number + 1, len(points), label(row), 100 * row["score"])
    return sorted(rows, key=lambda row: row["point"])


def _try(job: StageJob, number: int, point: AverageStage, asked: list[Asked]) -> dict[str, Any]:
    """Writes a point's model, asks it, removes it."""
    assert isinstance(job.stage, SearchStage)
    trial = job.path / _TRIAL
    shutil.rmtree(trial, ignore_errors=True)  # what an interrupted attempt left; its answers are another model's
    trial.mkdir(parents=True)
    try:
        sources, base = average.places(point, job.parents)
        # Digests are compared when the best one is written: once, not at every point.
        weights.average(point, sources, trial / WEIGHTS, base=base, verify=False)
        with progress(f"answers of point {number + 1}") as report:
            answers = evaluate.asker_of(job, trial).predict(asked, trial / ANSWERS, report)
        if left := jsonl.lines(trial / SKIPPED):  # the same at every point, listed once
            list_skipped(job.path / SKIPPED, map(json.loads, left))
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    if not answers:
        raise DataError("no question could be asked", str(job.path), "look at the data")
    made, _ = cards.make(asked, answers, {}, template="", image_aspect="")
    summary = evaluate.summary({**score(_plain(asked, answers)), "benchmarks": made}, 0.0, len(answers))
    if summary.get(job.stage.score) is None:
        raise DataError(
            f"no question counts for {job.stage.score}",
            ", ".join(job.stage.data),
            "score: accuracy, the name of a benchmark among the data, or other data",
        )
    numbers = {name: getattr(point.method, name) for name in job.stage.grid}
    shown = {name: summary[name] for name in ("accuracy", "accuracy_unseen", "chance", "n_questions")}
    return {
        "point": number,
        "weights": derived.average_weights(point),
        "parameters": numbers,
        "score": summary[job.stage.score],
        **shown,
    }


def _plain(asked: list[Asked], answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers to questions that belong to no benchmark."""
    names = {one.data for one in asked if one.benchmark is None}
    return [row for row in answers if row["data"] in names]


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _read(path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier attempt; a line torn by a kill ends them."""
    found: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            found.append({**row, "point": int(row["point"]), "score": float(row["score"])})
        except (ValueError, KeyError, TypeError):
            break
    return found
