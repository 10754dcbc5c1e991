"""What can be found wrong with tower, connector and tiles before a weight is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from vlmrun.arch import config_files, connectors, tiles, towers
from vlmrun.checks.table import Rule
from vlmrun.config import derived
from vlmrun.config.schema import Reading, RunConfig, Slices, Target, Tiles, TrainStage
from vlmrun.errors import CheckpointError, ConfigError, Problem
from vlmrun.hardware import packages

TIMM = "vlmrun.model.towers.timm.Timm"


def check(run: RunConfig) -> Iterator[Problem]:
    """Tower against connector, both against the tiles, all against the longest sample."""
    tower = run.model.tower
    yield from _weights(run.model.connector)
    yield from _aspect(run)
    if tower.target == TIMM:
        yield from packages.timm("model.tower")
    try:
        connector = connectors.arithmetic(run.model.connector)
    except ConfigError as error:
        yield from error.problems
        return
    if not config_files.is_told(tower):
        return
    try:
        eye = towers.arithmetic(tower)
        facts = None if eye is None else eye.facts()
    except CheckpointError as error:
        where = f"model.tower.{config_files.told_by(tower)}"
        yield from (Problem(problem.what, where, problem.fix) for problem in error.problems)
        return
    except ConfigError as error:
        yield from error.problems
        return
    if eye is None or facts is None:
        return
    if isinstance(run.model.tiles, Tiles) and facts.image_size is not None:
        yield from _grids(run.model.tiles, facts.image_size)
    if connector is not None:
        yield from _together(run, eye, facts, connector)


def _together(
    run: RunConfig, eye: towers.Arithmetic, facts: towers.Facts, connector: connectors.Arithmetic
) -> Iterator[Problem]:
    """What neither part tells alone; each rule stops at what the arithmetic refuses."""
    rules: tuple[Callable[[], Iterator[Problem] | None], ...] = (
        lambda: _shapes(run, eye, connector),
        lambda: _layers(run.model.tower, eye, facts, connector),
        lambda: _trained(run, connector),
        lambda: _widths(run, facts, connector),
        lambda: _length(run, facts, connector),
    )
    for rule in rules:
        try:
            yield from rule() or ()
        except ConfigError as error:
            yield from error.problems


def _weights(connector: Target) -> Iterator[Problem]:
    _, weights = derived.connector_weights(connector)
    place = Path(str(weights)).expanduser()
    if weights is not None and not (place.is_file() or place.is_dir()):
        yield Problem(
            f"no file {weights!r}", "model.connector.weights", "give mm_projector.bin, a .safetensors file, or a stage"
        )


def _aspect(run: RunConfig) -> Iterator[Problem]:
    for name, stage in run.stage.items():
        aspect = stage.image_aspect if isinstance(stage, Reading) else None
        kind, example = _CUTTING.get(aspect or "", (None, ""))
        if kind is not None and not isinstance(run.model.tiles, kind):
            yield Problem(
                f"image_aspect is {aspect}, but model.tiles does not say how images are cut",
                f"stage.{name}.image_aspect",
                f"'model.tiles={example}', or pad",
            )


_CUTTING: dict[str, tuple[type, str]] = {
    "anyres": (Tiles, "{grids: [[336, 672], [672, 336], [672, 672]], merge: spatial_unpad}"),
    "slices": (Slices, "{max_slices: 9, resolution: 448, marks: null, image_ids: never}"),
}


def _shapes(run: RunConfig, eye: towers.Arithmetic, connector: connectors.Arithmetic) -> Iterator[Problem]:
    """Slices of their own shape need a connector that takes them."""
    slicing = isinstance(run.model.tiles, Slices) and any(
        getattr(stage, "image_aspect", None) == "slices" for stage in run.stage.values()
    )
    if slicing and eye.ADAPTIVE and not connector.ADAPTIVE:
        yield Problem(
            "slices of this tower have shapes of their own, which the connector does not take",
            "model.connector",
            "model/connector=resampler",
        )


def _layers(
    tower: Target, eye: towers.Arithmetic, facts: towers.Facts, connector: connectors.Arithmetic
) -> Iterator[Problem]:
    """Who chooses the tower's layers, and whether they are there.

    Raises:
        ConfigError: for the first that is not.
    """
    layers, wanted = tower.arguments.get("layers", []), connector.wanted_layers(facts.n_layers or 0)
    where = "model.tower.layers"
    if wanted is not None and layers is not None:
        yield Problem("this connector chooses the tower's layers itself", where, "model.tower.layers=null")
    if wanted is None and layers is None:
        yield Problem("layers is null, but the connector asks for none", where, "model.tower.layers=[-2]")
    if facts.n_layers is None:
        return
    if isinstance(layers, list) and layers:
        towers.positions(layers, facts.n_layers, first=eye.FIRST)
    if wanted:
        towers.positions(wanted, facts.n_layers, first=eye.FIRST, where=connector.LAYERS_KEY)


def _trained(run: RunConfig, connector: connectors.Arithmetic) -> Iterator[Problem]:
    for name, stage in run.stage.items():
        if not connector.TRAINABLE and isinstance(stage, TrainStage) and stage.tune.connector == "full":
            yield Problem("an identity has nothing to train", f"stage.{name}.tune.connector", "freeze")


def _widths(run: RunConfig, facts: towers.Facts, connector: connectors.Arithmetic) -> None:
    """Raises ConfigError when the connector cannot stand between tower and LLM."""
    arguments = run.model.tower.arguments
    times = len(arguments.get("layers") or [1]) * len(arguments.get("scales") or [1])
    try:
        llm_dim = config_files.llm_facts(run.model.llm).hidden_dim if config_files.is_told(run.model.llm) else None
    except CheckpointError:  # reported where the LLM is looked at
        llm_dim = None
    if facts.hidden_dim is not None and llm_dim is not None:
        connector.check_widths(facts.hidden_dim * times, llm_dim)


def _grids(tiles: Tiles, image_size: int) -> Iterator[Problem]:
    for grid in tiles.grids:
        if any(edge % image_size for edge in grid):
            yield Problem(
                f"grid {grid} is no multiple of the tower's {image_size} pixels",
                "model.tiles.grids",
                f"multiples of {image_size}, such as [{image_size}, {2 * image_size}]",
            )


def _length(run: RunConfig, facts: towers.Facts, connector: connectors.Arithmetic) -> Iterator[Problem]:
    """Whether an image leaves room for text."""
    if facts.n_patches is None:
        return
    model, per_tile = run.model, connector.tokens(facts.n_patches)
    aspects = {getattr(stage, "image_aspect", None) for stage in run.stage.values()}
    tokens = max(tiles.most(per_tile, model.tiles, aspect, facts.image_size).tokens for aspect in [None, *aspects])
    if tokens >= model.max_length:
        yield Problem(
            f"an image takes {'up to ' if tokens != per_tile else ''}{tokens} tokens, "
            f"a sample may have {model.max_length}: no text fits",
            "model.max_length",
            f"more than {tokens}" + (", or a smaller model.tiles" if tokens != per_tile else ""),
        )


RULES = (
    Rule("vision", "Tower, connector and tiles fit together, and an image leaves room for text in the longest sample.",
         ("model.tower", "model.connector", "model.tiles", "model.max_length", "stage.*.image_aspect"), check,
         here=True),
)  # fmt: skip
