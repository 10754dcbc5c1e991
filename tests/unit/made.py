"""Artifacts made by hand, small and without any training."""

from __future__ import annotations

import io
import json
import math
import random
from pathlib import Path
from typing import Any

from PIL import Image

from vlmrun import artifact, store
from vlmrun.artifact import Artifact, Parent
from vlmrun.outcome import Outcome

CATEGORIES = ("colour", "shape", "count", "position")
_COLOURS = {"red": (215, 40, 40), "blue": (40, 80, 210), "green": (45, 155, 60)}


def stage(
    root: Path,
    name: str,
    kind: str,
    summary: dict[str, Any] | None = None,
    parents: tuple[Path, ...] = (),
    *,
    key: str | None = None,
    minute: int = 0,
) -> Path:
    """A finished stage folder; files put into it before are part of the artifact."""
    key = key or f"{sum(map(ord, name)):010x}"
    folder = store.folder(root, name, key)
    if not folder.is_dir():
        (folder / "weights").mkdir(parents=True)
        (folder / "weights" / "model.json").write_text('{"format": "vlmrun-1"}')
    made = Artifact(
        name=name,
        kind=kind,
        key=key,
        run="by_hand",
        created=f"2025-01-02T03:{minute:02}:05.000000+00:00",
        parents=[Parent(name=(found := _read(path)).name, key=found.key, path=str(path)) for path in parents],
        summary=summary or {},
        environment={"python": "3.11.9", "torch": "2.13.0"},
        files=artifact.describe_files(folder, tuple(path.name for path in sorted(folder.iterdir()))),
    )
    artifact.write_text(folder / artifact.NAME, made.model_dump_json())
    return folder


def train(root: Path, name: str, losses: list[float | None], **rest: Any) -> Path:
    """A train stage with these losses in its metrics.jsonl."""
    folder = store.folder(root, name, f"{sum(map(ord, name)):010x}")
    (folder / "weights").mkdir(parents=True)
    rows = [{"step": step, "loss": loss, "lr": 1e-3, "grad_norm": 1.0} for step, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    known = [loss for loss in losses if loss is not None]
    return stage(
        root, name, "train", {"steps": len(losses), "loss": known[-1] if known else None, "seconds": 12.5}, **rest
    )


def evaluate(root: Path, name: str, answers: list[dict[str, Any]], images: Path, **rest: Any) -> Path:
    """An evaluate stage with these answers, and scores that fit the categories."""
    folder = store.folder(root, name, f"{sum(map(ord, name)):010x}")
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(
        json.dumps({"stage": {"kind": "evaluate"}, "data": {"shapes_test": {"images": str(images)}}})
    )
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    right = [row["answer"] == row["expected"] for row in answers]
    accuracy = sum(right) / len(right)
    part = {"n_questions": len(answers), "accuracy": accuracy, "chance": 0.25, "shuffled": 0.31}
    scores = {"seen": {**part, "categories": dict.fromkeys(CATEGORIES, part)}, "unseen": None, "splits": {}}
    (folder / "scores.json").write_text(json.dumps(scores))
    summary = {"accuracy": accuracy, "accuracy_unseen": 0.5, "chance": 0.25, "shuffled": 0.31, "seconds": 3.25}
    return stage(root, name, "evaluate", summary, **rest)


def answer(number: int, *, correct: bool = True, **changes: Any) -> dict[str, Any]:
    """A row of answers.jsonl, about the picture `N.png`."""
    row = {
        "question_id": str(number),
        "data": "shapes_test",
        "image": f"{number}.png",
        "text": f"What is in picture {number}?",
        "category": CATEGORIES[number % len(CATEGORIES)],
        "split": "test" if number % 5 else "unseen",
        "expected": f"thing {number}",
        "answer": f"thing {number}" if correct else f"other {number}",
    }
    return {**row, **changes}


def pictures(folder: Path, count: int) -> Path:
    """`0.png` to `N.png`, each in one colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        colour = list(_COLOURS.values())[number % len(_COLOURS)]
        image = Image.new("RGB", (32, 32), (225, 225, 225))
        image.paste(colour, (8, 8, 24, 8 + number % 16 + 1))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        (folder / f"{number}.png").write_bytes(buffer.getvalue())
    return folder


def falling(steps: int, first: float = 4.0, last: float = 0.2) -> list[float | None]:
    """Losses that fall, with some noise."""
    noise = random.Random(steps)
    return [last + (first - last) * math.exp(-6 * n / steps) * noise.uniform(0.8, 1.2) for n in range(steps)]


def outcome(folder: Path, *, reused: bool = False) -> Outcome:
    """A finished stage as a run reports it."""
    made = _read(folder)
    return Outcome(made.name, made, folder, reused)


def _read(folder: Path) -> Artifact:
    found = artifact.read(folder)
    assert found is not None
    return found
