"""Rules between a run and the files it names: references, targets, packages, models of other runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from vlmrun import build, graph, kinds, regular
from vlmrun.arch import config_files as parts
from vlmrun.checks.table import Rule
from vlmrun.config import derived
from vlmrun.config.marks import Mark
from vlmrun.config.schema import RunConfig, StageNode, TrainStage
from vlmrun.errors import CheckpointError, Problem
from vlmrun.hardware import packages
from vlmrun.names import MODEL, PARTS, WEIGHTS

# Arguments that model/parts.py supplies itself when it builds a part.
_SUPPLIED = {
    "llm": frozenset({"dtype", "attention", "quant", "added"}),
    "tower": frozenset({"dtype", "attention"}),
    "connector": frozenset({"vision_dim", "llm_dim"}),
}
# Where our own parts are.
_HOMES = {"llm": "vlmrun.model.llm", "tower": "vlmrun.model.towers", "connector": "vlmrun.model.connectors"}
_MOST_PREPARED = 10_000_000
# Arguments that say where a part is read from, and the sizes by which two config.json are compared.
_PLACES = {"path", "config", "tokenizer", "weights"}
_SIZES = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "vocab_size", "image_size", "patch_size")  # fmt: skip


def _of_kind(target: str, home: str, noun: str, where: str) -> Iterator[Problem]:
    """A class of ours that is of another kind; one of a plugin is looked at when it is built."""
    if target.startswith("vlmrun.") and not target.startswith(f"{home}."):
        yield Problem(f"{target} is no {noun}", where, f"a name below {home}, or of your own package")


def _empty(stage: StageNode, where: str) -> Iterator[Problem]:
    """References that are there and name nothing."""
    for name, field in type(stage).model_fields.items():
        value = getattr(stage, name, None)  # a command has no parents
        named = value if isinstance(value, list) else [value]
        if "" in named and any(isinstance(mark, Mark) for mark in field.metadata):
            yield Problem(f"{name} is empty", f"{where}.{name}", f"{where}.{name}=NAME, or null for nothing")


def _output(run: RunConfig) -> Iterator[Problem]:
    place = Path(run.output).expanduser()
    there = next((path for path in (place, *place.parents) if path.is_symlink() or path.exists()), Path())
    if not there.is_dir():
        yield Problem(f"{there} is no folder", "output", "output=FOLDER, which is made when it is not there")


def _references(run: RunConfig) -> Iterator[Problem]:
    yield from graph.plan(run)[1]


def _kind(stage: StageNode, where: str) -> Iterator[Problem]:
    yield from kinds.of(stage).check(stage, where)


def _targets(run: RunConfig) -> Iterator[Problem]:
    for name in PARTS:
        part = getattr(run.model, name)
        if name == "connector":
            part, _ = derived.connector_weights(part)
        yield from _of_kind(part.target, _HOMES[name], name, f"model.{name}")
        yield from build.check(part.target, part.arguments, f"model.{name}", _SUPPLIED[name])
    for name, data in run.data.items():
        if data.prepare is not None:
            where = f"data.{name}.prepare"
            yield from _of_kind(data.prepare.target, "vlmrun.data", "function that prepares data", where)
            for key, value in data.prepare.arguments.items():
                if isinstance(value, int | float) and abs(value) > _MOST_PREPARED:
                    what = f"{key} = {value}: too many to be made"
                    yield Problem(what, f"{where}.{key}", f"{_MOST_PREPARED} at most")
            yield from build.check(data.prepare.target, data.prepare.arguments, where, frozenset({"folder"}))


def _packages(run: RunConfig) -> Iterator[Problem]:
    stages = [name for name, stage in run.stage.items() if isinstance(stage, TrainStage) and stage.tune.llm == "qlora"]
    for name in stages:
        yield from packages.bitsandbytes(f"stage.{name}.tune.llm")
    for name, stage in run.stage.items():
        if isinstance(stage, TrainStage) and stage.loss_head == "liger":
            yield from packages.liger(run.hardware, f"stage.{name}.loss_head")
    # A loader of one's own may not know packed weights or new tokens.
    asked: dict[str, object] = {"quant": None} if stages else {}
    asked |= {"added": ()} if run.model.image_markers or run.model.new_tokens else {}
    for name, value in asked.items():
        arguments = {**run.model.llm.arguments, name: value}
        yield from build.check(run.model.llm.target, arguments, "model.llm", frozenset({"dtype", "attention"}))


def _continued(run: RunConfig) -> Iterator[Problem]:
    """A model of another run that a stage starts from must be of the parts that this run describes."""
    for name, stage in run.stage.items():
        reference = getattr(stage, "init_from", None)
        saved = Path(reference or "").expanduser() / WEIGHTS / MODEL
        if not reference or reference in run.stage or not saved.is_file():
            continue
        try:
            yield from _differences(run, saved, f"stage.{name}.init_from")
        except (AttributeError, KeyError, OSError, TypeError, ValueError, CheckpointError):
            yield Problem(
                f"{saved} cannot be read", f"stage.{name}.init_from", "the artifact is damaged: make it again"
            )


def _differences(run: RunConfig, saved: Path, where: str) -> Iterator[Problem]:
    regular.require(saved, json=True)
    held = json.loads(saved.read_text("utf-8"))["model"]
    for part in PARTS:
        target = getattr(run.model, part)
        ours = {"_target_": target.target, **target.arguments}
        theirs = held[part]
        keys = sorted((ours.keys() | theirs.keys()) - _PLACES)
        changed = [
            f"{key}: {theirs.get(key)} there, {ours.get(key)} here" for key in keys if ours.get(key) != theirs.get(key)
        ]
        if part != "connector":
            regular.require(saved.parent / part / "config.json", json=True)
            there = json.loads((saved.parent / part / "config.json").read_text("utf-8"))
            here = parts.config_of(target)
            inner = "vision_config" if part == "tower" else "text_config"
            there, here = there.get(inner, there), here.get(inner, here)
            both = [key for key in _SIZES if key in there and key in here]
            changed += [f"{key}: {there[key]} there, {here[key]} here" for key in both if there[key] != here[key]]
        if changed:
            fix = f"choose the same model/{part} and the same values"
            yield Problem(f"its {part} is another than this run describes: {'; '.join(changed)}", where, fix)


RULES = (
    Rule("references", "A stage starts from stages of the run or from finished artifacts, without a cycle, and reads "
         "data of the run.",
         ("stage.*.init_from", "stage.*.adapters", "stage.*.models", "stage.*.base_model", "stage.*.data", "only"),
         _references),
    Rule("output", "The output root is a folder, or can become one.", ("output",), _output, here=True),
    Rule("named", "A reference to a stage, an artifact or data is not empty.",
         ("stage.*",), _empty, of=(StageNode,), alone=True),
    Rule("stage-kind", "A stage of a plugin's kind keeps the rules of that kind.", ("stage.*",), _kind, of=(StageNode,),
         alone=True),
    Rule("targets", "Classes and functions that are named are allowed, exist, and take the arguments they are given.",
         ("model.llm", "model.tower", "model.connector", "data.*.prepare"), _targets, here=True),
    Rule("packages", "Packages that QLoRA and liger's loss need are installed, and the LLM's loader knows of both.",
         ("stage.*.tune.llm", "stage.*.loss_head", "model.llm"), _packages, here=True),
    Rule("same-parts", "A model of another run that a stage starts from has the parts that this run describes.",
         ("stage.*.init_from", "model"), _continued, here=True),
)  # fmt: skip
