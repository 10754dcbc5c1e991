"""Rules between a run and the files it names: references, targets, LLM, tokenizer, templates, data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from vlmrun import build, graph, kinds
from vlmrun.arch import attention, families
from vlmrun.arch import config_files as parts
from vlmrun.checks import shards as shard_checks
from vlmrun.checks.table import Rule
from vlmrun.config import derived
from vlmrun.config.schema import Asking, ConvertStage, DataConfig, Reading, RunConfig, StageNode, TrainStage
from vlmrun.data.formats import FORMATS
from vlmrun.data.images import grid
from vlmrun.data.templates import TEMPLATES
from vlmrun.errors import CheckpointError, Problem, suggest
from vlmrun.hardware import packages
from vlmrun.names import MODEL, PARTS, WEIGHTS

# Arguments that model/parts.py supplies itself when it builds a part.
_SUPPLIED = {
    "llm": frozenset({"dtype", "attention", "quant", "added"}),
    "tower": frozenset({"dtype", "attention"}),
    "connector": frozenset({"vision_dim", "llm_dim"}),
}
_ROLES = ("pad", "eos", "unk", "bos")
# Arguments that say where a part is read from, and the sizes by which two config.json are compared.
_PLACES = {"path", "config", "tokenizer", "weights"}
_SIZES = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "vocab_size", "image_size", "patch_size")  # fmt: skip


def _references(run: RunConfig) -> Iterator[Problem]:
    yield from graph.plan(run)[1]


def _kind(stage: StageNode, where: str) -> Iterator[Problem]:
    yield from kinds.of(stage).check(stage, where)


def _heads(run: RunConfig) -> Iterator[Problem]:
    """Whether the attention kernel computes heads of the sizes that the LLM and the tower have."""
    for name in ("llm", "tower"):
        part = getattr(run.model, name)
        try:
            size = parts.head_dim(part) if parts.is_told(part) else None
        except CheckpointError:  # told where the part is looked at
            continue
        if size is not None:
            yield from attention.check_head(run.hardware, size, "LLM" if name == "llm" else "vision tower")


def _targets(run: RunConfig) -> Iterator[Problem]:
    for name in PARTS:
        part = getattr(run.model, name)
        if name == "connector":
            part, _ = derived.connector_weights(part)
        yield from build.check(part.target, part.arguments, f"model.{name}", _SUPPLIED[name])
    for name, data in run.data.items():
        if data.prepare is not None:
            where = f"data.{name}.prepare"
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


def _readers(run: RunConfig) -> dict[str, Reading]:
    return {name: stage for name, stage in run.stage.items() if isinstance(stage, Reading)}


def _templated(run: RunConfig) -> dict[str, Reading | ConvertStage]:
    converting = {name: stage for name, stage in run.stage.items() if isinstance(stage, ConvertStage)}
    return {**_readers(run), **converting}


def _templates(run: RunConfig) -> Iterator[Problem]:
    if run.model.template not in TEMPLATES:
        fix = suggest(run.model.template, TEMPLATES, noun="templates")
        yield Problem(f"no template {run.model.template!r}", "model.template", fix)
    for name, stage in _templated(run).items():
        theirs = isinstance(stage, TrainStage) and stage.compat.labels == "minicpm"
        if theirs and not (stage.template or run.model.template).startswith("minicpm_"):
            yield Problem(
                "MiniCPM-V's labels are those of its own templates",
                f"stage.{name}.compat.labels",
                "minicpm_v2, minicpm_v25 or minicpm_v26 as model.template, or compat.labels=null",
            )
        if stage.template is not None and stage.template not in TEMPLATES:
            where = f"stage.{name}.template"
            yield Problem(
                f"no template {stage.template!r}", where, suggest(stage.template, TEMPLATES, noun="templates")
            )


def _data(run: RunConfig) -> Iterator[Problem]:
    active = {name: stage for name, stage in _readers(run).items() if not run.only or name in run.only}
    used = {source for stage in active.values() for source in derived.sources(stage)}
    for name, data in run.data.items():
        if "." not in data.format and data.format not in FORMATS:
            where = f"data.{name}.format"
            yield Problem(f"no data format {data.format!r}", where, suggest(data.format, FORMATS, noun="formats"))
        if data.prepare is None and name in used:
            yield from _files(data, f"data.{name}")
        for key, path in (("annotations", data.annotations), ("images", data.images)):
            if data.prepare is not None and path and (Path(path).is_absolute() or ".." in Path(path).parts):
                yield Problem(
                    f"{path!r} leaves the folder that is prepared", f"data.{name}.{key}", "a path inside that folder"
                )
    for name, stage in _readers(run).items():
        for source in stage.data:
            kind = run.data[source].format if source in run.data else None
            if (kind == "vqa") != isinstance(stage, Asking) and kind in FORMATS:
                wanted = "vqa" if isinstance(stage, Asking) else "llava"
                yield Problem(
                    f"{stage.kind} cannot read data {source!r} of format {kind}",
                    f"stage.{name}.data",
                    f"name data of format {wanted}",
                )


def _files(data: DataConfig, where: str) -> Iterator[Problem]:
    annotations = Path(data.annotations).expanduser()
    shards = derived.in_shards(data)
    yield from shard_checks.check(data, where)
    is_there = annotations.is_dir() if shards else annotations.is_file()
    noun = "folder of shards" if shards else "file"
    missing = [] if is_there else [("annotations", f"no {noun} {data.annotations!r}")]
    if data.images is not None and not Path(data.images).expanduser().is_dir():
        missing.append(("images", f"no folder {data.images!r}"))
    if missing and data.about is not None:
        about = data.about
        records = f", {about.records:,} records" if about.records else ""
        fix = f"from {about.url} (licence: {about.licence}{records}): {about.fetch}; VLMRUN_DATA names the data folder"
        yield Problem(" and ".join(what for _, what in missing), where, fix)
        return
    for key, what in missing:
        fix = f"give an existing {noun}" if key == "annotations" else "give the folder that image paths start from"
        yield Problem(what, f"{where}.{key}", fix)


def _llm(run: RunConfig) -> Iterator[Problem]:
    if not parts.is_told(run.model.llm):
        return
    try:
        facts = parts.llm_facts(run.model.llm)
        tokenizer = parts.tokenizer_facts(run.model.llm)
    except CheckpointError as error:
        where = f"model.llm.{parts.told_by(run.model.llm)}"
        yield from (Problem(problem.what, where, problem.fix) for problem in error.problems)
        return
    if facts.max_positions is not None and run.model.max_length > facts.max_positions:
        yield Problem(
            f"max_length {run.model.max_length} exceeds the LLM's {facts.max_positions} positions",
            "model.max_length",
            f"model.max_length={facts.max_positions} or less",
        )
    family = families.find(facts.family)
    known = family.attention
    if known is not None and run.hardware.attention not in known:
        yield Problem(
            f"{facts.family} knows no attention {run.hardware.attention!r} in transformers",
            "hardware.attention",
            f"hardware.attention={' or '.join(known)}",
        )
    for name, stage in run.stage.items():
        if isinstance(stage, TrainStage) and stage.packing is not None and not family.packable:
            yield Problem(
                f"samples of one row are not known to stay apart in {facts.family or 'this LLM'}",
                f"stage.{name}.packing",
                f"stage.{name}.packing=null; known: {', '.join(families.having('packable'))}",
            )
    yield from _roles(run, tokenizer)
    if tokenizer is not None:
        yield from _vocabulary(run, facts, tokenizer)
    for name, stage in run.stage.items():
        if isinstance(stage, TrainStage) and stage.lora is not None and isinstance(stage.lora.targets, list):
            yield from _lora_targets(stage.lora.targets, facts, f"stage.{name}.lora.targets")
        elif isinstance(stage, TrainStage) and stage.lora is not None:
            yield from _lora_pattern(str(stage.lora.targets), facts, f"stage.{name}.lora.targets")


def _roles(run: RunConfig, tokenizer: parts.TokenizerFacts | None) -> Iterator[Problem]:
    """The tokens that play roles must be in the tokenizer, and one of them must pad."""
    tokens = run.model.llm.arguments.get("tokens") or {}
    if not isinstance(tokens, dict):
        yield Problem(f"tokens is {tokens!r}", "model.llm.tokens", "keys and values, such as {pad: <unk>}")
        return
    for role, text in tokens.items():
        where = f"model.llm.tokens.{role}"
        if role not in _ROLES:
            yield Problem(f"no role {role!r}", where, suggest(str(role), _ROLES, noun="roles"))
        elif text is not None and tokenizer is not None and text not in tokenizer.tokens:
            yield Problem(
                f"the tokenizer has no token {text!r}", where, suggest(str(text), tokenizer.special, noun="tokens")
            )
    if not tokens.get("pad") and tokenizer is not None and tokenizer.pads is False:
        yield Problem(
            "the tokenizer names no padding token",
            "model.llm.tokens.pad",
            "a token of its vocabulary, such as <unk> or its end of text (padding is masked by position)",
        )


def _vocabulary(run: RunConfig, llm: parts.LlmFacts, tokenizer: parts.TokenizerFacts) -> Iterator[Problem]:
    if tokenizer.n_ids > llm.vocab_size:
        yield Problem(
            f"the tokenizer has {tokenizer.n_ids} ids, the LLM {llm.vocab_size} embedding rows",
            "model.llm",
            "use the tokenizer that belongs to this LLM",
        )
    rules = derived.slices(run.model)
    marks = set() if rules is None else set(grid.marks_of(rules))
    if "<image>" in tokenizer.tokens and "<image>" not in marks:
        yield Problem(
            "the tokenizer has a token <image> of its own, which marks the place of pictures here",
            "model.llm",
            "use the tokenizer of the LLM alone, before a VLM was made of it",
        )
    has = tokenizer.tokens | {*(run.model.image_markers or []), *run.model.new_tokens}
    if marks - has:
        yield Problem(
            f"slices are marked with {', '.join(sorted(marks - has))}, which the tokenizer does not have",
            "model.tiles.marks",
            "null: slices without marks, or the tokenizer of a MiniCPM-V",
        )
    places = {run.model.template: "model.template"}
    places |= {stage.template: f"stage.{name}.template" for name, stage in _readers(run).items() if stage.template}
    for template, where in places.items():
        missing = (
            [text for text in TEMPLATES[template].special_tokens if text not in has] if template in TEMPLATES else []
        )
        if missing:
            yield Problem(
                f"template {template!r} needs the tokens {', '.join(missing)}, which the tokenizer does not have",
                where,
                "choose the template this LLM was trained with: " + ", ".join(_fitting(has)),
            )


def _fitting(has: frozenset[str]) -> list[str]:
    return [name for name, template in TEMPLATES.items() if set(template.special_tokens) <= has]


def _lora_targets(targets: list[str], llm: parts.LlmFacts, where: str) -> Iterator[Problem]:
    for target in targets:
        if llm.linear_layers is not None and target.split(".")[-1] not in llm.linear_layers:
            fix = suggest(target, llm.linear_layers, noun="linear layers")
            yield Problem(f"LoRA target {target!r} matches no layer of the LLM", where, fix)


def _lora_pattern(pattern: str, llm: parts.LlmFacts, where: str) -> Iterator[Problem]:
    """An expression that matches no layer of a Llama, where that is what the LLM's layers are called."""
    names = parts.llama_layers(llm)
    try:
        matches = not names or pattern == "all-linear" or any(re.fullmatch(pattern, name) for name in names)
    except re.error:  # a problem of its own
        return
    if not matches:
        yield Problem(f"LoRA's {pattern!r} matches no layer of the LLM", where, f"all of a name must match: {names[0]}")


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
    Rule("stage-kind", "A stage of a plugin's kind keeps the rules of that kind.", ("stage.*",), _kind, of=(StageNode,),
         alone=True),
    Rule("head-size", "The attention kernel computes heads of the sizes that LLM and tower have.",
         ("hardware.attention", "model.llm", "model.tower"), _heads, here=True),
    Rule("targets", "Classes and functions that are named are allowed, exist, and take the arguments they are given.",
         ("model.llm", "model.tower", "model.connector", "data.*.prepare"), _targets, here=True),
    Rule("packages", "Packages that QLoRA and liger's loss need are installed, and the LLM's loader knows of both.",
         ("stage.*.tune.llm", "stage.*.loss_head", "model.llm"), _packages, here=True),
    Rule("templates", "Every template exists, and MiniCPM-V's labels are made by its own templates.",
         ("model.template", "stage.*.template", "stage.*.compat.labels"), _templates, here=True),
    Rule("data", "Data that are read have a known format, which the stage can use, and their files are there.",
         ("data.*.format", "data.*.annotations", "data.*.images", "stage.*.data"), _data, here=True),
    Rule("llm", "The LLM has room for the longest sample, knows the attention and the packing that are asked for, has "
         "the layers that LoRA names, and a tokenizer with the tokens of template and roles.", ("model.llm",
         "model.max_length", "model.template", "hardware.attention", "stage.*.packing", "stage.*.lora.targets"), _llm,
         here=True),
    Rule("same-parts", "A model of another run that a stage starts from has the parts that this run describes.",
         ("stage.*.init_from", "model"), _continued, here=True),
)  # fmt: skip
