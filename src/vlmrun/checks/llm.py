"""Rules about the LLM, its tokenizer, and what is asked of its layers."""

from __future__ import annotations

from collections.abc import Iterator

from vlmrun import expressions
from vlmrun.arch import attention, families
from vlmrun.arch import config_files as parts
from vlmrun.checks.table import Rule
from vlmrun.config import derived
from vlmrun.config.schema import Reading, RunConfig, TrainStage
from vlmrun.data.images import grid
from vlmrun.data.templates import TEMPLATES
from vlmrun.errors import CheckpointError, Problem, suggest

_ENDS = ("embed_tokens", "wte", "embed_in", "lm_head", "embed_out")  # what families call embedding and head
_ROLES = ("pad", "eos", "unk", "bos")


def _heads(run: RunConfig) -> Iterator[Problem]:
    """Whether the attention kernel computes heads of the sizes that the LLM and the tower have."""
    for name in ("llm", "tower"):
        part = getattr(run.model, name)
        try:
            size = parts.head_dim(part) if parts.is_told(part) else None
        except CheckpointError:  # reported where the part is looked at
            continue
        if size is not None:
            yield from attention.check_head(run.hardware, size, "LLM" if name == "llm" else "vision tower")


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
        if isinstance(stage, TrainStage):
            yield from _trained(stage, run, facts, f"stage.{name}")


def _trained(stage: TrainStage, run: RunConfig, facts: parts.LlmFacts, where: str) -> Iterator[Problem]:
    """Whether the LLM has the blocks, layers and modules that a stage is to train."""
    yield from _blocks(stage, facts, f"{where}.tune.llm_last")
    if stage.lora is None:
        return
    if stage.tune.adapters:
        yield from _saved_of_tied(run, stage.lora.modules_to_save, f"{where}.lora.modules_to_save")
        yield from _saved(stage.lora.modules_to_save, facts, f"{where}.lora.modules_to_save")
    if isinstance(stage.lora.targets, list):
        yield from _lora_targets(stage.lora.targets, facts, f"{where}.lora.targets")
    else:
        yield from _lora_pattern(str(stage.lora.targets), facts, f"{where}.lora.targets")


def _blocks(stage: TrainStage, llm: parts.LlmFacts, where: str) -> Iterator[Problem]:
    n = stage.tune.llm_last
    if n is not None and llm.n_blocks is not None and n > llm.n_blocks:
        yield Problem(f"the LLM has {llm.n_blocks} blocks, not {n}", where, f"{where}={llm.n_blocks} or less, or null")


def _saved(modules: list[str], llm: parts.LlmFacts, where: str) -> Iterator[Problem]:
    """A module that is to train whole must be one; those of a tied head have no tensor of their own."""
    if not llm.modules:
        return
    known = llm.modules.union(_ENDS)
    for name in modules:
        if name not in known:
            fix = suggest(name, known, noun="modules")
            yield Problem(f"no module of the LLM is called {name!r}", where, fix)


def _saved_of_tied(run: RunConfig, modules: list[str], where: str) -> Iterator[Problem]:
    """An output head that is the input embedding cannot be saved beside an adapter as one of the two."""
    asked = [name for name in modules if name in _ENDS]
    if asked and families.is_tied(parts.config_of(run.model.llm)):
        for name in asked:
            yield Problem(
                f"{name!r} cannot be trained beside adapters: this LLM's output head is its embedding (tied)",
                where,
                "leave it out, or train the LLM whole (tune.llm: full)",
            )


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
        elif not isinstance(text, str | None):
            yield Problem(f"{role} is {text!r}, not a token", where, f"the text of one token: {where}='<unk>'")
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
            "the tokenizer has a token <image> of its own, which marks the place of images here",
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
    places |= {
        stage.template: f"stage.{name}.template"
        for name, stage in run.stage.items()
        if isinstance(stage, Reading) and stage.template
    }
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
    if not names or pattern == "all-linear" or expressions.fault(pattern) is not None:  # a problem of its own
        return
    if not any(expressions.matches(pattern, name) for name in names):
        yield Problem(f"LoRA's {pattern!r} matches no layer of the LLM", where, f"all of a name must match: {names[0]}")


RULES = (
    Rule("head-size", "The attention kernel computes heads of the sizes that LLM and tower have.",
         ("hardware.attention", "model.llm", "model.tower"), _heads, here=True),
    Rule("llm", "The LLM has room for the longest sample, knows the attention and the packing that are asked for, has "
         "the blocks and layers that are to be trained, and a tokenizer with the tokens of template and roles.",
         ("model.llm", "model.max_length", "model.template", "hardware.attention", "stage.*.packing",
          "stage.*.lora.targets", "stage.*.lora.modules_to_save", "stage.*.tune.llm_last"), _llm, here=True),
)  # fmt: skip
