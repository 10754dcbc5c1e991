"""What can be found wrong with tower, connector and tiles before a weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vlmrun.arch import config_files
from vlmrun.config import derived
from vlmrun.config.schema import Reading, RunConfig, Slices, Target, Tiles, TrainStage
from vlmrun.errors import CheckpointError, Problem
from vlmrun.hardware import packages

_CONNECTORS = "vlmrun.model.connectors"
_DENSE = f"{_CONNECTORS}.dense.Dense"
TIMM = "vlmrun.model.towers.timm.Timm"
_IDENTITY = f"{_CONNECTORS}.identity.Identity"
NAVIT = "vlmrun.model.towers.siglip_navit.SiglipNavit"
_RESAMPLERS = (f"{_CONNECTORS}.resampler.Resampler", f"{_CONNECTORS}.resampler.FixedResampler")
_GROUP, _POOL = 4, 8


def _side(n_patches: int) -> int:
    side = math.isqrt(n_patches)
    if side * side != n_patches:
        raise ValueError(f"it needs a square map of patches, the tower gives {n_patches}")
    return side


def _square(queries: int) -> int:
    if math.isqrt(queries) ** 2 != queries:
        raise ValueError(f"queries lie in a square, and {queries} form none")
    return queries


def _grouped(n_patches: int, arguments: dict[str, Any]) -> int:
    if n_patches % _GROUP:
        raise ValueError(f"{n_patches} patches cannot be taken {_GROUP} at a time")
    return n_patches // _GROUP


def _dense(n_patches: int, arguments: dict[str, Any]) -> int:
    if arguments.get("kind") != "sti":
        return n_patches
    if n_patches < _POOL:
        raise ValueError(f"sti averages {_POOL} patches, the tower gives {n_patches}")
    return n_patches + len(arguments.get("shallow", (7, 15))) * (n_patches // _POOL)


# The `tokens` of every built-in connector once more, free of torch; a test holds them equal.
TOKENS: dict[str, Callable[[int, dict[str, Any]], int]] = {
    f"{_CONNECTORS}.mlp.MLP": lambda n_patches, arguments: n_patches,
    _IDENTITY: lambda n_patches, arguments: n_patches,
    _DENSE: _dense,
    f"{_CONNECTORS}.grouped.Grouped": _grouped,
    f"{_CONNECTORS}.spp.SPP": lambda n_patches, arguments: (_side(n_patches) // 2) ** 2,
    _RESAMPLERS[0]: lambda n_patches, arguments: int(arguments.get("queries", 96)),
    _RESAMPLERS[1]: lambda n_patches, arguments: _square(int(arguments.get("queries", 64))),
    f"{_CONNECTORS}.ldp.LDP": lambda n_patches, arguments: ((_side(n_patches) + 1) // 2) ** 2,
}


def check(run: RunConfig) -> Iterator[Problem]:
    """Tower against connector, both against the tiles, all against the longest sample."""
    tower, connector = run.model.tower, run.model.connector
    yield from _weights(connector)
    yield from _aspect(run)
    yield from _shapes(run)
    if tower.target == TIMM:
        yield from packages.timm("model.tower")
    if not config_files.is_told(tower):
        return
    try:
        facts = config_files.tower_facts(tower)
    except CheckpointError as error:
        where = f"model.tower.{config_files.told_by(tower)}"
        yield from (Problem(problem.what, where, problem.fix) for problem in error.problems)
        return
    yield from _layers(tower, connector, facts)
    if connector.target == _IDENTITY:
        yield from _identity(run, facts)
    if isinstance(run.model.tiles, Tiles) and facts.image_size is not None:
        yield from _grids(run.model.tiles, facts.image_size)
    if facts.n_patches is not None and connector.target in TOKENS:
        yield from _length(run, facts, facts.n_patches)


def _weights(connector: Target) -> Iterator[Problem]:
    _, weights = derived.connector_weights(connector)
    if weights is not None and not Path(str(weights)).expanduser().exists():
        yield Problem(
            f"no file {weights!r}", "model.connector.weights", "give mm_projector.bin, a .safetensors file, or a stage"
        )


def _aspect(run: RunConfig) -> Iterator[Problem]:
    for name, stage in run.stage.items():
        aspect = stage.image_aspect if isinstance(stage, Reading) else None
        kind, example = _CUTTING.get(aspect or "", (None, ""))
        if kind is not None and not isinstance(run.model.tiles, kind):
            yield Problem(
                f"image_aspect is {aspect}, but model.tiles does not say how pictures are cut",
                f"stage.{name}.image_aspect",
                f"'model.tiles={example}', or pad",
            )


_CUTTING: dict[str, tuple[type, str]] = {
    "anyres": (Tiles, "{grids: [[336, 672], [672, 336], [672, 672]], merge: spatial_unpad}"),
    "slices": (Slices, "{max_slices: 9, resolution: 448, marks: null, image_ids: never}"),
}


def _shapes(run: RunConfig) -> Iterator[Problem]:
    """Slices of their own shape need a connector that takes them; 4-bit layers of a tower nothing that trains them."""
    slicing = isinstance(run.model.tiles, Slices) and any(
        getattr(stage, "image_aspect", None) == "slices" for stage in run.stage.values()
    )
    connector = run.model.connector.target
    if run.model.tower.target == NAVIT and slicing and connector in TOKENS and connector not in _RESAMPLERS:
        yield Problem(
            "slices of this tower have shapes of their own, which the connector does not take",
            "model.connector",
            "model/connector=resampler",
        )


def _layers(tower: Target, connector: Target, facts: config_files.TowerFacts) -> Iterator[Problem]:
    layers = tower.arguments.get("layers", [])
    where = "model.tower.layers"
    if connector.target == _DENSE and layers is not None:
        yield Problem("the dense connector chooses the tower's layers itself", where, "model.tower.layers=null")
    if layers is None and connector.target in TOKENS and connector.target != _DENSE:
        yield Problem("layers is null, but the connector asks for none", where, "model.tower.layers=[-2]")
    if facts.n_layers is None:
        return
    first = 1 if tower.target == TIMM else 0
    shallow = connector.arguments.get("shallow", [7, 15]) if connector.target == _DENSE else []
    if connector.arguments.get("kind") == "dci":
        shallow = []
    for layer in layers if isinstance(layers, list) else []:  # what is no number is a problem of _targets
        if isinstance(layer, int) and not (-facts.n_layers - 1 + first <= layer <= facts.n_layers):
            yield _no_layer(layer, facts.n_layers, where)
    for layer in shallow if isinstance(shallow, list) else []:
        if isinstance(layer, int) and not -facts.n_layers - 1 <= layer <= facts.n_layers:
            yield _no_layer(layer, facts.n_layers, "model.connector.shallow")


def _identity(run: RunConfig, facts: config_files.TowerFacts) -> Iterator[Problem]:
    """Features go into the LLM as they are, and there is nothing to train."""
    for name, stage in run.stage.items():
        if isinstance(stage, TrainStage) and stage.tune.connector == "full":
            yield Problem("an identity has nothing to train", f"stage.{name}.tune.connector", "freeze")
    arguments = run.model.tower.arguments
    times = len(arguments.get("layers") or [1]) * len(arguments.get("scales") or [1])
    try:
        llm_dim = config_files.llm_facts(run.model.llm).hidden_dim if config_files.is_told(run.model.llm) else None
    except CheckpointError:  # told where the LLM is looked at
        llm_dim = None
    if facts.hidden_dim is not None and llm_dim is not None and facts.hidden_dim * times != llm_dim:
        yield Problem(
            f"features of width {facts.hidden_dim * times} do not fit an LLM of width {llm_dim} without a connector",
            "model.connector",
            "model/connector=linear",
        )


def _no_layer(layer: int, n_layers: int, where: str) -> Problem:
    return Problem(
        f"layer {layer} does not exist: the tower has {n_layers} blocks",
        where,
        f"0 (before the first block) to {n_layers}, or -1 to {-n_layers - 1} from the end",
    )


def _grids(tiles: Tiles, image_size: int) -> Iterator[Problem]:
    for grid in tiles.grids:
        if any(edge % image_size for edge in grid):
            yield Problem(
                f"grid {grid} is no multiple of the tower's {image_size} pixels",
                "model.tiles.grids",
                f"multiples of {image_size}, such as [{image_size}, {2 * image_size}]",
            )


def _length(run: RunConfig, facts: config_files.TowerFacts, n_patches: int) -> Iterator[Problem]:
    model = run.model
    try:
        per_tile = TOKENS[model.connector.target](n_patches, model.connector.arguments)
        tokens = per_tile
        cuts = any(_cuts(stage) for stage in run.stage.values())
        if cuts and isinstance(model.tiles, Slices):
            tokens = per_tile * (1 + model.tiles.max_slices * (model.tiles.max_slices > 1))
        elif cuts and isinstance(model.tiles, Tiles) and facts.image_size is not None:
            tiles, edge = model.tiles, facts.image_size
            tokens = max(most_tokens(tiles, grid, per_tile, edge) for grid in tiles.grids)
    except (ValueError, TypeError, AttributeError) as error:
        if isinstance(error, ValueError):
            yield Problem(f"connector and tower do not fit: {error}", "model.connector", "choose another of them")
        return
    if tokens >= model.max_length:
        yield Problem(
            f"an image takes {'up to ' if tokens != per_tile else ''}{tokens} tokens, "
            f"a sample may have {model.max_length}: no text fits",
            "model.max_length",
            f"more than {tokens}" + (", or a smaller model.tiles" if tokens != per_tile else ""),
        )


def _cuts(stage: Any) -> bool:
    return getattr(stage, "image_aspect", None) in _CUTTING


def most_tokens(tiles: Tiles, grid: list[int], per_tile: int, image_size: int) -> int:
    """Image tokens of a picture that fills a grid."""
    columns, rows = grid[0] // image_size, grid[1] // image_size
    whole = per_tile * (1 + columns * rows)
    return whole if tiles.merge == "flat" else whole + (_side(per_tile) * rows if tiles.merge == "spatial_unpad" else 0)
