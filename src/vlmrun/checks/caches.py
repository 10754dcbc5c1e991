"""Rules about folders that keep prepared images and features of a tower."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vlmrun.arch import config_files, towers
from vlmrun.checks.table import Rule
from vlmrun.config.schema import RunConfig, TrainStage
from vlmrun.errors import CheckpointError, ConfigError, Problem


def _folders(stage: TrainStage, where: str) -> Iterator[Problem]:
    for name in ("image_cache", "tower_cache"):
        given = getattr(stage, name)
        if given is None:
            continue
        path = Path(given).expanduser()
        there = next((place for place in (path, *path.parents) if place.exists()), None)
        if not given.strip():
            yield Problem(f"{name} is empty", f"{where}.{name}", f"{where}.{name}=null, or a folder")
        elif there is not None and not there.is_dir():
            yield Problem(f"{there} is not a folder", f"{where}.{name}", f"{where}.{name}=null, or a folder")


def _frozen(stage: TrainStage, where: str) -> Iterator[Problem]:
    if stage.tower_cache is None:
        return
    off = f"{where}.tower_cache=null"
    if stage.tune.tower != "freeze":
        yield Problem(
            f"the tower is trained (tune.tower: {stage.tune.tower}), so its features change with every update",
            f"{where}.tower_cache",
            off,
        )
    sharded = "ZeRO-3" if stage.engine == "deepspeed" and stage.zero == 3 else "FSDP"
    if stage.engine == "fsdp" or sharded == "ZeRO-3":
        yield Problem(
            f"{sharded} shards the tower: all ranks have to run it together, or none",
            f"{where}.tower_cache",
            f"{off}, or {where}.engine=deepspeed {where}.zero=2",
        )


def _shapes(run: RunConfig) -> Iterator[Problem]:
    cached = [name for name, stage in run.stage.items() if isinstance(stage, TrainStage) and stage.tower_cache]
    if not cached or not config_files.is_told(run.model.tower):
        return
    try:
        eye = towers.arithmetic(run.model.tower)
    except (CheckpointError, ConfigError):  # reported where the tower is looked at
        return
    if eye is not None and eye.ADAPTIVE:
        for name in cached:
            yield Problem(
                "this tower takes images of any shape, whose features differ in size",
                f"stage.{name}.tower_cache",
                f"stage.{name}.tower_cache=null",
            )


RULES = (
    Rule("caches", "What keeps prepared images or features is a folder.",
         ("stage.*.image_cache", "stage.*.tower_cache"), _folders, of=(TrainStage,), alone=True, here=True),
    Rule("tower_cache", "Features are kept of a frozen tower that is whole on every rank.",
         ("stage.*.tower_cache", "stage.*.tune", "stage.*.engine", "stage.*.zero"), _frozen,
         of=(TrainStage,), alone=True),
    Rule("cached_shapes", "Features are kept of towers whose images are all of one size.",
         ("model.tower", "stage.*.tower_cache"), _shapes, here=True),
)  # fmt: skip
