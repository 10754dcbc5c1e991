"""What can be found wrong with tower, connector and tiles before a weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlmrun.arch import config_files, connectors, tiles, towers
from vlmrun.checks.table import Rule
from vlmrun.config import derived
from vlmrun.config.schema import Reading, RunConfig, Slices, Tiles, TrainStage
from vlmrun.errors import CheckpointError, ConfigError, Problem
from vlmrun.hardware import packages

TIMM = "vlmrun.model.towers.timm.Timm"


@dataclass(frozen=True)
class _Parts:
    """Tower and connector as far as they are known without their weights; rules that need another are silent."""

    eye: towers.Arithmetic | None = None
    facts: towers.Facts | None = None
    connector: connectors.Arithmetic | None = None


def _parts(run: RunConfig) -> _Parts:
    """Tower and connector of a run.

    Raises:
        ConfigError: for arguments that the arithmetic refuses, and for a tower's config.json that cannot be used.
    """
    tower = run.model.tower
    connector = connectors.arithmetic(run.model.connector)
    if not config_files.is_told(tower):
        return _Parts(connector=connector)
    try:
        eye = towers.arithmetic(tower)
        return _Parts(eye, None if eye is None else eye.facts(), connector)
    except CheckpointError as error:
        where = f"model.tower.{config_files.told_by(tower)}"
        raise ConfigError([Problem(problem.what, where, problem.fix) for problem in error.problems]) from error


def _readable(run: RunConfig) -> Iterator[Problem]:
    try:
        _parts(run)
    except ConfigError as error:
        yield from error.problems


def _known(run: RunConfig) -> _Parts:
    """Nothing where `_readable` has found a problem."""
    try:
        return _parts(run)
    except ConfigError:
        return _Parts()


def _timm(run: RunConfig) -> Iterator[Problem]:
    if run.model.tower.target == TIMM:
        yield from packages.timm("model.tower")


def _weights(run: RunConfig) -> Iterator[Problem]:
    _, weights = derived.connector_weights(run.model.connector)
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


def _shapes(run: RunConfig) -> Iterator[Problem]:
    """Slices of their own shape need a connector that takes them."""
    parts = _known(run)
    if parts.eye is None or parts.connector is None:
        return
    slicing = isinstance(run.model.tiles, Slices) and any(
        getattr(stage, "image_aspect", None) == "slices" for stage in run.stage.values()
    )
    if slicing and parts.eye.ADAPTIVE and not parts.connector.ADAPTIVE:
        yield Problem(
            "slices of this tower have shapes of their own, which the connector does not take",
            "model.connector",
            "model/connector=resampler",
        )


def _layers(run: RunConfig) -> Iterator[Problem]:
    """Who chooses the tower's layers, and whether they are there: the first that is not is named."""
    parts = _known(run)
    if parts.eye is None or parts.facts is None or parts.connector is None:
        return
    n_layers, first = parts.facts.n_layers, parts.eye.FIRST
    layers, wanted = run.model.tower.arguments.get("layers", []), parts.connector.wanted_layers(n_layers or 0)
    where = "model.tower.layers"
    if wanted is not None and layers is not None:
        yield Problem("this connector chooses the tower's layers itself", where, "model.tower.layers=null")
    if wanted is None and layers is None:
        yield Problem("layers is null, but the connector asks for none", where, "model.tower.layers=[-2]")
    if n_layers is None:
        return
    try:
        if isinstance(layers, list) and layers:
            towers.positions(layers, n_layers, first=first)
        if wanted:
            towers.positions(wanted, n_layers, first=first, where=parts.connector.LAYERS_KEY)
    except ConfigError as error:
        yield from error.problems


def _trained(run: RunConfig) -> Iterator[Problem]:
    parts = _known(run)
    if parts.facts is None or parts.connector is None or parts.connector.TRAINABLE:
        return
    for name, stage in run.stage.items():
        if isinstance(stage, TrainStage) and stage.tune.connector == "full":
            yield Problem("an identity has nothing to train", f"stage.{name}.tune.connector", "freeze")


def _widths(run: RunConfig) -> Iterator[Problem]:
    """Whether the connector can stand between tower and LLM."""
    parts, arguments = _known(run), run.model.tower.arguments
    try:
        llm_dim = config_files.llm_facts(run.model.llm).hidden_dim if config_files.is_told(run.model.llm) else None
    except CheckpointError:  # reported where the LLM is looked at
        llm_dim = None
    if parts.facts is None or parts.facts.hidden_dim is None or parts.connector is None or llm_dim is None:
        return
    times = len(arguments.get("layers") or [1]) * len(arguments.get("scales") or [1])
    try:
        parts.connector.check_widths(parts.facts.hidden_dim * times, llm_dim)
    except ConfigError as error:
        yield from error.problems


def _grids(run: RunConfig) -> Iterator[Problem]:
    facts, cut = _known(run).facts, run.model.tiles
    image_size = None if facts is None else facts.image_size
    if not isinstance(cut, Tiles) or image_size is None:
        return
    for grid in cut.grids:
        if any(edge % image_size for edge in grid):
            yield Problem(
                f"grid {grid} is no multiple of the tower's {image_size} pixels",
                "model.tiles.grids",
                f"multiples of {image_size}, such as [{image_size}, {2 * image_size}]",
            )


def _length(run: RunConfig) -> Iterator[Problem]:
    """Whether an image leaves room for text."""
    parts, model = _known(run), run.model
    if parts.facts is None or parts.facts.n_patches is None or parts.connector is None:
        return
    aspects = {getattr(stage, "image_aspect", None) for stage in run.stage.values()}
    try:
        per_tile, size = parts.connector.tokens(parts.facts.n_patches), parts.facts.image_size
        tokens = max(tiles.most(per_tile, model.tiles, aspect, size).tokens for aspect in [None, *aspects])
    except ConfigError as error:
        yield from error.problems
        return
    if tokens >= model.max_length:
        yield Problem(
            f"an image takes {'up to ' if tokens != per_tile else ''}{tokens} tokens, "
            f"a sample may have {model.max_length}: no text fits",
            "model.max_length",
            f"more than {tokens}" + (", or a smaller model.tiles" if tokens != per_tile else ""),
        )


RULES = (
    Rule("connector_weights", "The file that a connector starts from is there.",
         ("model.connector",), _weights, here=True),
    Rule("image_aspect", "Stages that cut images have model.tiles, which say how.",
         ("model.tiles", "stage.*.image_aspect"), _aspect),
    Rule("timm", "The package timm is installed for a tower that it builds.",
         ("model.tower",), _timm, here=True),
    Rule("vision_parts", "Tower and connector take their arguments, and the tower's config.json can be used.",
         ("model.tower", "model.connector"), _readable, here=True),
    Rule("tiles", "The edges of grids are multiples of the tower's image size.",
         ("model.tower", "model.tiles"), _grids, here=True),
    Rule("slice_shapes", "Slices with shapes of their own have a connector that takes them.",
         ("model.tower", "model.connector", "model.tiles", "stage.*.image_aspect"), _shapes, here=True),
    Rule("tower_layers", "The layers of a tower are chosen by it or by the connector, and are there.",
         ("model.tower", "model.connector"), _layers, here=True),
    Rule("identity", "A connector without weights is not trained.",
         ("model.connector", "stage.*.tune"), _trained, here=True),
    Rule("widths", "The connector can stand between the tower's width and the LLM's.",
         ("model.tower", "model.connector", "model.llm"), _widths, here=True),
    Rule("image_length", "An image leaves room for text in the longest sample.",
         ("model.tower", "model.connector", "model.tiles", "model.max_length", "stage.*.image_aspect"), _length,
         here=True),
)  # fmt: skip
