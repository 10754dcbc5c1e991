"""What kept features of a frozen tower save: `python -m benchmarks.tower_cache`.

The connector of the smoke model is pretrained with a ViT-S/16 of random weights in the tower's place: without a cache,
with an empty one, and as the next point of a sweep, which finds all features. Losses of the first two are compared.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Table, parser, run, show, vlmrun

WITHOUT, EMPTY, NEXT = "no cache", "an empty cache", "the next point of a sweep"
_SMALL = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
BATCH, EPOCHS = 16, 2


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__ or "")
    options.add_argument("--images", type=int, default=256)
    chosen = options.parse_args()
    n_images, sizes = (32, _TINY) if chosen.quick else (chosen.images, _SMALL)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cached = "stage.pretrain.tower_cache=features"
        found = {
            WITHOUT: _trained(folder, "without", n_images, sizes),
            EMPTY: _trained(folder, "empty", n_images, sizes, cached),
            NEXT: _trained(folder, "next", n_images, sizes, cached, "stage.pretrain.optim.lr=2e-3"),
        }
        n_bytes = sum(file.stat().st_size for file in (folder / "features").rglob("*") if file.is_file())
    first, plain = _seconds(found[WITHOUT])
    rows: list[list[Any]] = []
    for name, steps in found.items():
        one, two = _seconds(steps)
        rows.append([name, one, two, round(first / one, 2), round(plain / two, 2)])
    same = [row["loss"] for row in found[WITHOUT]] == [row["loss"] for row in found[EMPTY]]
    notes = [
        f"{n_images} images, micro batches of {BATCH}, {n_bytes / 1e6:.0f} MB of features; "
        f"losses with and without a cache are {'equal to the last bit' if same else 'NOT EQUAL'}"
    ]
    header = ["run", "s/step, epoch 1", "s/step, epoch 2", "times as fast, 1", "times as fast, 2"]
    show(Table("Features of a frozen tower", header, rows, notes), chosen.json)


def _trained(folder: Path, name: str, n_images: int, sizes: dict[str, int], *overrides: str) -> list[dict[str, Any]]:
    config = {"model_type": "clip_vision_model", "image_size": 224, "patch_size": 16, **sizes}
    command = [
        *vlmrun(), "+recipe=smoke", "only=[pretrain]", f"name={name}", f"output={folder / name}",
        "model/tower=pico_clip",
        f"model.tower.config={json.dumps(config)}".replace('"', ""), "model.max_length=256",
        "model/connector=mlp2x_gelu", "model.connector.weights=null", f"stage.pretrain.epochs={EPOCHS}.0",
        f"stage.pretrain.global_batch={BATCH}", f"stage.pretrain.micro_batch={BATCH}", "stage.pretrain.engine=plain",
        f"data.shapes_captions.prepare.n_train={n_images}", *overrides,
    ]  # fmt: skip
    run(command, folder)
    (metrics,) = (folder / name).rglob("metrics.jsonl")
    return [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]


def _seconds(steps: list[dict[str, Any]]) -> list[float]:
    """Median of a step in each epoch; the very first, which also warms up, is left out."""
    half = len(steps) // EPOCHS
    return [statistics.median(row["seconds"] for row in part) for part in (steps[1:half], steps[half:])]


if __name__ == "__main__":
    main()
