"""Rules about adapters and the last blocks of a part: their shape, where they are, what they continue from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmrun import endings, expressions, regular
from vlmrun.checks.table import Rule
from vlmrun.config import derived
from vlmrun.config.schema import Lora, RunConfig, TrainStage
from vlmrun.errors import Problem, VlmrunError

_LORA = "{r: 128, alpha: 256.0, dropout: 0.05, targets: all-linear, bias: none, modules_to_save: []}"
# Names of PEFT for what must be the same where an adapter is trained further.
_SHAPE = {"r": "r", "alpha": "lora_alpha", "rslora": "use_rslora", "dora": "use_dora"}


def _lora(stage: TrainStage, where: str) -> Iterator[Problem]:
    tune, tower = stage.tune, stage.tune.tower == "lora"
    if tune.adapters and stage.lora is None:
        yield Problem(f"tune.llm is {tune.llm}, but lora has no values", where, f"'{where}.lora={_LORA}'")
    elif tower and stage.lora is None and stage.tower_lora is None:
        yield Problem("tune.tower is lora, but tower_lora has no values", where, f"'{where}.tower_lora={_LORA}'")
    if not tune.adapters and stage.lora is not None and (not tower or stage.tower_lora is not None):
        yield Problem(
            f"lora has values, but tune.llm is {tune.llm}", where, f"{where}.tune.llm=lora or {where}.lora=null"
        )
    if stage.tower_lora is not None and not tower:
        yield Problem(
            f"tower_lora has values, but tune.tower is {tune.tower}",
            f"{where}.tower_lora",
            f"{where}.tune.tower=lora or {where}.tower_lora=null",
        )
    for name, shape in (("lora", stage.lora), ("tower_lora", stage.tower_lora)):
        if shape is not None:
            yield from _shape(shape, f"{where}.{name}")
    shape = derived.tower_lora(stage)
    if shape is not None and (shape.modules_to_save or shape.bias != "none"):
        yield Problem(
            "beside the adapters of the tower nothing of it trains",
            f"{where}.tower_lora",
            f"'{where}.tower_lora={_LORA}'",
        )


def _shape(lora: Lora, where: str) -> Iterator[Problem]:
    if not lora.targets:
        yield Problem("LoRA has no targets", f"{where}.targets", "all-linear, or names such as [q_proj, v_proj]")
    if isinstance(lora.targets, str) and (what := expressions.fault(lora.targets)):
        yield Problem(what, f"{where}.targets", "all-linear, a list of names, or a simpler expression")
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(lora, key):
            if what := endings.fault(pattern):
                yield Problem(what, f"{where}.{key}", endings.FIX)


def _last(stage: TrainStage, where: str) -> Iterator[Problem]:
    tune = stage.tune
    able = {"llm": tune.llm in ("full", "lora", "qlora"), "tower": tune.sees}
    for part, trained in able.items():
        n = getattr(tune, f"{part}_last")
        if n is not None and not trained:
            yield Problem(
                f"{part}_last is {n}, but tune.{part} is {getattr(tune, part)}",
                f"{where}.tune.{part}_last",
                f"{where}.tune.{part}=full, or {where}.tune.{part}_last=null",
            )


def _parent(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    """A stage that starts from a LoRA stage of the run."""
    parent = run.stage.get(stage.init_from or "")
    if not isinstance(parent, TrainStage) or not parent.tune.adapters:
        return
    merge = f"add a merge stage of {stage.init_from} and start from that"
    if stage.tune.llm in ("full", "new_tokens"):
        yield Problem(f"{stage.init_from!r} ends with adapters that are not merged", f"{where}.init_from", merge)
    elif stage.tune.adapters:
        if (stage.tune.llm, stage.quant) != (parent.tune.llm, parent.quant):
            yield Problem(
                f"the adapters of {stage.init_from!r} were trained with tune.llm {parent.tune.llm}",
                f"{where}.tune.llm",
                f"the same tune.llm and quant, or {merge}",
            )
        yield from _same(stage, _values(parent), where, merge)


def _same(stage: TrainStage, there: dict[str, Any], where: str, merge: str) -> Iterator[Problem]:
    """Adapters that are trained further keep their shape; dropout is no part of it."""
    ours = _values(stage)
    different = [key for key, value in there.items() if ours.get(key) != value]
    if different:
        shown = ", ".join(f"{key} {there[key]}, here {ours.get(key)}" for key in different)
        yield Problem(f"{stage.init_from!r} has adapters of another shape: {shown}", f"{where}.lora", merge)


def _values(stage: TrainStage) -> dict[str, Any]:
    shape = {} if stage.lora is None else stage.lora.model_dump(exclude={"dropout"})
    return shape | {"llm_last": stage.tune.llm_last}


def _artifact(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    """The same for the folder of an artifact, as far as its adapter's config says it."""
    if stage.init_from is None or stage.init_from in run.stage:
        return
    folder = Path(stage.init_from).expanduser()
    files = (folder / place / "adapter" / "adapter_config.json" for place in ("weights", "."))
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return
    try:
        regular.require(file, json=True)
        config = json.loads(file.read_text("utf-8"))
    except (VlmrunError, OSError, ValueError, RecursionError):
        return  # opening the artifact says what is wrong with it
    if not isinstance(config, dict):
        what = f"{file} holds no keys and values"
        yield Problem(what, f"{where}.init_from", "write the model again, or start from another one")
        return
    merge = f"vlmrun merge {stage.init_from} MERGED, and {where}.init_from=MERGED"
    if stage.tune.llm in ("full", "new_tokens"):
        yield Problem(f"{folder} has adapters that are not merged", f"{where}.init_from", merge)
    elif stage.tune.adapters:
        there = {ours: config[theirs] for ours, theirs in _SHAPE.items() if theirs in config}
        yield from _same(stage, there, where, merge)


_TRAIN = (TrainStage,)
RULES = (
    Rule("lora", "LoRA has values, with targets, exactly where the LLM or the tower is trained through adapters.",
         ("stage.*.tune.llm", "stage.*.tune.tower", "stage.*.lora", "stage.*.tower_lora"), _lora, of=_TRAIN,
         alone=True),
    Rule("last-blocks", "Only a part that is trained can be trained in its last blocks.",
         ("stage.*.tune.llm_last", "stage.*.tune.tower_last"), _last, of=_TRAIN, alone=True),
    Rule("adapters-are-continued", "A stage that starts from adapters trains them further in their shape, leaves them "
         "frozen, or starts from a merged model.", ("stage.*.init_from", "stage.*.tune.llm", "stage.*.lora"), _parent,
         of=_TRAIN),
    Rule("adapters-of-artifacts", "The same holds for the folder of an artifact.",
         ("stage.*.init_from", "stage.*.tune.llm", "stage.*.lora"), _artifact, of=_TRAIN, here=True),
)  # fmt: skip
