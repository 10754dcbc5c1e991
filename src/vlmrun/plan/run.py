"""From a composed run to what `plan` computes with: sizes of the parts, from their config.json or a published one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vlmrun import back, graph
from vlmrun.arch import connectors, families, towers
from vlmrun.arch.published import config_of
from vlmrun.arch.sizes import Connector, Llm, Shapes, Tower
from vlmrun.arch.tiles import most
from vlmrun.checks import records, rules
from vlmrun.config import derived
from vlmrun.config.schema import ModelConfig, PrepareStage, RunConfig, Slices, Tiles, TrainStage
from vlmrun.errors import ConfigError, VlmrunError
from vlmrun.plan import advice, lengths, stage, time
from vlmrun.plan.lengths import Known
from vlmrun.plan.stage import OtherPlan, Read, TrainPlan
from vlmrun.plan.time import Rates

CAPTION_TEMPLATES = ("plain",)  # an image and what it shows, nothing asked


def shapes(model: ModelConfig, *, exact: bool = False) -> tuple[Shapes | None, list[str]]:
    """Sizes of the parts, and the hub ids whose published sizes stand in for a folder.

    Args:
        exact: what `families` does not know is built without weights and asked, which loads torch; else the sizes are
            None.

    Raises:
        CheckpointError: when a config.json is missing.
    """
    llm, tower = config_of(model.llm, "llm"), config_of(model.tower, "tower")
    both = ((model.llm, llm), (model.tower, tower))
    stood_in = [str(part.arguments["path"]) for part, config in both if config.published]
    found = _computed(model, llm.values, tower.values)
    if found is None and exact:
        n_added = len([*(model.image_markers or []), *model.new_tokens])
        found = back.shapes_of(model, llm.values, tower.values, n_added)
    return found, stood_in


def _computed(model: ModelConfig, llm_config: dict[str, Any], tower_config: dict[str, Any]) -> Shapes | None:
    llm = families.llm(llm_config, len([*(model.image_markers or []), *model.new_tokens]))
    eye, connector = towers.arithmetic(model.tower, tower_config), connectors.arithmetic(model.connector)
    if llm is None or eye is None or connector is None:
        return None
    wanted = connector.wanted_layers(eye.n_layers or 0)
    tower = eye.sizes(model.tower.arguments.get("layers") or wanted or [])
    if tower is None:
        return None
    between = _between(connector, llm, tower, wanted, model.tiles)
    return Shapes(llm, tower, between) if between is not None else None


def _between(
    connector: connectors.Arithmetic, llm: Llm, tower: Tower, wanted: list[int] | None, tiles: Tiles | Slices | None
) -> Connector | None:
    one_layer = tower.width // tower.kept
    try:
        made = connector.sizes(tower.width if wanted is None else one_layer, llm.hidden, tower.patches)
    except ConfigError:  # a problem of its own
        return None
    newline = llm.hidden * (isinstance(tiles, Tiles) and tiles.merge == "spatial_unpad")
    return replace(made, extra=made.extra + newline) if made is not None else None


@dataclass(frozen=True)
class Options:
    """What `vlmrun plan` takes besides overrides."""

    rates: Rates
    records: Mapping[str, int] = field(default_factory=dict)
    counted: bool = True


@dataclass(frozen=True)
class Plan:
    """All stages of a run that are to be run, in order.

    Attributes:
        stood_in: hub ids whose published sizes stand in for folders that are not here.
    """

    run: RunConfig
    stages: tuple[TrainPlan | OtherPlan, ...]
    stood_in: tuple[str, ...]


def plan(run: RunConfig, options: Options) -> Plan:
    """The plan of a composed run.

    Raises:
        VlmrunError: when a config.json is missing, or nothing tells how many records there are.
    """
    graph.require(rules.check(run, here=False))
    planned, _ = graph.plan(run)
    found, stood_in = shapes(run.model, exact=True)
    assert found is not None
    chosen = [item for item in graph.selected(planned, run.only) if not isinstance(item.stage, PrepareStage)]
    return Plan(run, tuple(_stage(run, item.name, found, options) for item in chosen), tuple(stood_in))


def warnings(run: RunConfig) -> list[str]:
    """Stages that need more memory than a GPU has; silent about parts that only a model tells the sizes of."""
    try:
        found, _ = shapes(run.model)
        room = advice.capacity(run.hardware)
    except (VlmrunError, OSError):
        return []  # a problem of its own
    if found is None or room is None or rules.check(run, here=False):
        return []
    said = []
    for name, one in run.stage.items():
        if isinstance(one, TrainStage) and (not run.only or name in run.only):
            options = Options(Rates(time.MFU, time.PRICE), counted=False)
            samples = _read(run, one, found, options).samples
            needed = stage.needed(found, one, run.hardware, samples).total
            if needed > room:
                said.append(
                    f"stage.{name}: about {needed / 2**30:.0f} GiB a GPU are planned, {run.hardware.gpu} has "
                    f"{room / 2**30:.0f}; `vlmrun plan` with the same words says what would fit"
                )
    return said


def updates(run: RunConfig, one: TrainStage) -> str | None:
    """How many updates a stage makes, in words; None where it is not known how many records there are."""
    captions = derived.template(one, run.model) in CAPTION_TEMPLATES
    usable = records.usable(one, run)  # as the rules count them; files that they do not read are counted unread
    known = Known(captions, run.model.max_length, {}, counted=usable is None)
    sources = [lengths.source(name, run.data[name], known) for name in one.data if name in run.data]
    if usable is not None:
        sources = [replace(source, records=usable[source.name]) for source in sources]
    longest, most = run.model.max_length, one.max_samples
    samples = lengths.together(sources, one.data_weights, per_picture=0, tiles=1, max_length=longest, most=most)
    n = time.steps(one, samples)
    if n is None:
        return None
    about = "about " if one.packing is not None else ""
    if one.epochs is None and samples.n:
        passes = n * one.global_batch / samples.n
        return f"{about}{n:,} updates, {passes:.3g} passes over the data"
    short = one.max_steps is not None and n < one.max_steps
    return f"{about}{n:,} update{'s'[: n != 1]}" + (
        f" (the data end before max_steps {one.max_steps:,})" if short else ""
    )


def _stage(run: RunConfig, name: str, found: Shapes, options: Options) -> TrainPlan | OtherPlan:
    one = run.stage[name]
    if isinstance(one, TrainStage):
        return stage.train(name, found, one, run.hardware, _read(run, one, found, options), options.rates)
    return stage.other(name, found, one, run.hardware, run.model.max_length)


def _read(run: RunConfig, one: TrainStage, found: Shapes, options: Options) -> Read:
    captions = derived.template(one, run.model) in CAPTION_TEMPLATES
    known = Known(captions, run.model.max_length, options.records, options.counted)
    sources = {name: lengths.source(name, run.data[name], known) for name in derived.sources(one)}
    per_tile, edge = found.connector.tokens, found.tower.edge * found.tower.enlarged
    per_picture, tiles = most(per_tile, run.model.tiles, one.image_aspect, edge)

    def together(names: list[str], weights: list[float] | None, most: int | None) -> lengths.Samples:
        chosen, longest = [sources[name] for name in names], run.model.max_length
        return lengths.together(chosen, weights, per_picture=per_picture, tiles=tiles, max_length=longest, most=most)

    held_out = together(one.eval.data, None, None) if one.eval is not None else None
    return Read(tuple(sources.values()), together(one.data, one.data_weights, one.max_samples), held_out)
