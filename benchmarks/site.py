"""A thousand runs in one output root: `python -m benchmarks.site [--runs N]`.

How long the list of runs takes, the first build of the site, one where nothing changed, and one after another run.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Table, parser, run, show, vlmrun
from vlmrun import artifact
from vlmrun.artifact import Artifact, Parent
from vlmrun.config.compose import compose
from vlmrun.run.record import NAME

_STEPS = 200
_NOTES = [
    "Every run has a training of its own with 200 updates, and shares its data; its record holds the composed config\n"
    "of the smoke recipe. Processor time is compared with the targets, wall time is what other work leaves of it.",
]


def main() -> None:
    """Makes runs, measures, prints."""
    options = parser(__doc__ or "")
    options.add_argument("--runs", type=int, default=1000)
    chosen = options.parse_args()
    n_runs = 20 if chosen.quick else chosen.runs
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        root = folder / "outputs"
        config = compose(["+recipe=smoke"]).tree
        shared = _stage(root, "shapes", "prepare", "0" * 10, [])
        for number in range(1, n_runs + 1):
            _run(root, number, config, shared)
        commands = {
            "vlmrun runs": (["runs"], 1.0),
            "vlmrun site, first build": (["site"], None),
            "vlmrun site, nothing changed": (["site"], 2.0),
        }
        rows = [_row(folder, label, words, target) for label, (words, target) in commands.items()]
        _run(root, n_runs + 1, config, shared)
        rows.append(_row(folder, "vlmrun site, one more run", ["site"], 2.0))
    header = ["command", "seconds", "cpu s", "peak MiB", "target"]
    show(Table(f"{n_runs:,} runs in one output root", header, rows, _NOTES), chosen.json)


def _row(folder: Path, label: str, words: list[str], target: float | None) -> list[Any]:
    cost = run([*vlmrun(), *words], folder)
    verdict = None if target is None else f"< {target:g} s: {'met' if cost.cpu_seconds < target else 'MISSED'}"
    return [label, round(cost.seconds, 3), round(cost.cpu_seconds, 3), round(cost.peak_bytes / 2**20), verdict]


def _stage(root: Path, name: str, kind: str, key: str, parents: list[Artifact]) -> Artifact:
    folder = root / "stages" / f"{name}-{key}"
    folder.mkdir(parents=True)
    if kind == "train":
        rows = (
            {"step": step, "loss": 3 / step, "lr": 1e-3, "grad_norm": 1.0, "tokens": 1000, "samples": 8, "seconds": 0.1}
            for step in range(1, _STEPS + 1)
        )
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    trained = {"steps": _STEPS, "loss": 3 / _STEPS, "seconds": 20.0}
    made = Artifact(
        name=name,
        kind=kind,
        key=key,
        run="bench",
        created=artifact.now(),
        environment={},
        files={},
        parents=[
            Parent(name=one.name, key=one.key, path=str(root / f"stages/{one.name}-{one.key}")) for one in parents
        ],
        summary=trained if kind == "train" else {"seconds": 1.0},
    )
    (folder / artifact.NAME).write_text(made.model_dump_json(), "utf-8")
    return made


def _run(root: Path, number: int, config: Any, shared: Artifact) -> None:
    trained = _stage(root, "train", "train", f"{number:010x}", [shared])
    folder = root / "runs" / "bench" / str(number)
    folder.mkdir(parents=True)
    stages = {
        each.name: {"key": each.key, "kind": each.kind, "reused": each is shared, "numbers": each.summary}
        for each in (shared, trained)
    }
    launch = {
        **{"started": artifact.now(), "ended": artifact.now(), "state": "finished", "error": None},
        **{"command": "vlmrun +recipe=smoke", "folder": "/", "host": "bench", "process": [1, 0.0], "gpus": []},
        **{"versions": {}, "code": None},
    }
    record = {
        **{"name": "bench", "number": number, "overrides": [f"seed={number}"], "config": config},
        **{"launches": [launch], "stages": stages, "tags": [], "note": "", "archived": False},
    }
    (folder / NAME).write_text(json.dumps(record, default=str), "utf-8")


if __name__ == "__main__":
    main()
