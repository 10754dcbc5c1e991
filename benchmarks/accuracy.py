"""Whether the smoke recipe really learns to see, whatever the seed: `python -m benchmarks.accuracy`.

Runs the real command once for each seed. Words after the options are overrides for it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Table, parser, run, show, vlmrun
from benchmarks.startup import TINY

MODELS = ("pretrain", "instruct", "merge", "merge2", "average")
SCORES = ("seen", "unseen", "chance", "shuffled")


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__ or "")
    options.add_argument("--seeds", default="0,1,2", help="separated by commas")
    options.add_argument("--output", type=Path, help="keep the runs there; a second call reuses what is finished")
    options.add_argument("overrides", nargs="*", help="for vlmrun +recipe=smoke")
    chosen = options.parse_args()
    models = MODELS[:1] if chosen.quick else MODELS
    overrides = [*TINY, "only=[pretrain,eval_pretrain]"] if chosen.quick else ["+recipe=smoke"]
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        folder = (chosen.output or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        show(measure(seeds, models, [*overrides, *chosen.overrides], folder), chosen.json)


def measure(seeds: list[int], models: tuple[str, ...], overrides: list[str], folder: Path) -> Table:
    """One run for each seed; rows for each seed, then the lowest and the mean over seeds."""
    scores: dict[int, dict[str, dict[str, float | None]]] = {}
    seconds: dict[int, float] = {}
    for seed in seeds:
        name = f"seed-{seed}"
        cost = run([*vlmrun(), *overrides, f"seed={seed}", f"name={name}", f"output={folder}"], folder)
        stages = folder / "runs" / name / "stages"
        scores[seed] = {model: _read(stages / f"eval_{model}" / "scores.json") for model in models}
        seconds[seed] = cost.seconds
    rows: list[list[Any]] = []
    for model in models:
        found = [scores[seed][model] for seed in seeds]
        rows += [[model, str(seed), *scores[seed][model].values()] for seed in seeds]
        for label, summarise in (("lowest", min), ("mean", statistics.fmean)):
            rows.append([model, label, *(_over_seeds([one[score] for one in found], summarise) for score in SCORES)])
    spent = ", ".join(f"{value:.0f} s (seed {seed})" for seed, value in seconds.items())
    notes = [
        "Exact match on held-out pictures. seen: attribute combinations that training shows; unseen: ones it never "
        "shows.\nchance: always the most frequent answer of a question's category. shuffled: the same questions with "
        "another\nquestion's picture, what a model that does not look would reach. pretrain knows captions, no "
        "questions.",
        f"wall time of the whole command: {spent}; {sum(seconds.values()):.0f} s in all",
    ]
    return Table("accuracy of recipe smoke over seeds", ["model", "seed", *SCORES], rows, notes)


def _read(file: Path) -> dict[str, float | None]:
    scores = json.loads(file.read_text("utf-8"))
    seen, unseen = scores["seen"] or {}, scores["unseen"] or {}
    found = (seen.get("accuracy"), unseen.get("accuracy"), seen.get("chance"), seen.get("shuffled"))
    return dict(zip(SCORES, found, strict=True))


def _over_seeds(values: list[float | None], summarise: Any) -> float | None:
    present = [value for value in values if value is not None]
    return float(summarise(present)) if present else None


if __name__ == "__main__":
    main()
