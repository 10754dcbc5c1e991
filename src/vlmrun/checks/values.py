"""Rules between the values of training stages, one small function each; no file is opened, no weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from vlmrun.checks.table import Rule
from vlmrun.config import derived
from vlmrun.config.schema import EvaluateStage, RunConfig, TrainStage
from vlmrun.errors import Problem, suggest


def _something_trains(stage: TrainStage, where: str) -> Iterator[Problem]:
    if {stage.tune.llm, stage.tune.tower, stage.tune.connector} == {"freeze"}:
        yield Problem(
            "nothing is trained: every part is frozen", f"{where}.tune", f"for instance {where}.tune.connector=full"
        )


def _quant(stage: TrainStage, where: str) -> Iterator[Problem]:
    quant, packed = stage.quant, stage.tune.llm == "qlora"
    if packed and quant is None:
        yield Problem(
            "tune.llm is qlora, but quant has no values", where, f"'{where}.quant={{bits: 4, type: nf4, double: true}}'"
        )
    if not packed and quant is not None:
        yield Problem(
            f"quant has values, but tune.llm is {stage.tune.llm}",
            f"{where}.quant",
            f"{where}.tune.llm=qlora, or {where}.quant=null",
        )
    if quant is not None and quant.bits == 8 and (quant.type != "nf4" or quant.double):
        yield Problem(
            "type and double are of 4 bits, but bits is 8",
            f"{where}.quant",
            f"'{where}.quant={{bits: 8, type: nf4, double: false}}' (the type is not used)",
        )
    if stage.compat.quantised_head and not packed:
        yield Problem(
            f"compat.quantised_head is of qlora, but tune.llm is {stage.tune.llm}",
            f"{where}.compat.quantised_head",
            f"{where}.compat.quantised_head=false",
        )


def _new_tokens(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    added = [*(run.model.image_markers or []), *run.model.new_tokens]
    only_rows = stage.tune.llm == "new_tokens"
    if only_rows and not added:
        yield Problem(
            "tune.llm is new_tokens, but the model adds none",
            f"{where}.tune.llm",
            "\"model.image_markers=['<im_start>', '<im_end>']\", or another tune.llm",
        )
    sharded = stage.engine == "deepspeed" and stage.zero == 3
    if only_rows and sharded:
        yield Problem("ZeRO-3 cuts the embedding whose rows are to be trained", f"{where}.zero", f"{where}.zero=2")
    elif added and sharded and stage.init_from is None:
        yield Problem(
            "tokens cannot be added while ZeRO-3 loads the LLM in pieces",
            f"{where}.zero",
            f"{where}.zero=2 in the first stage: the later ones start from a model that has the tokens",
        )
    if added and stage.tune.llm == "qlora" and stage.init_from is None:
        yield Problem(
            "tokens cannot be added to a quantized LLM", f"{where}.init_from", "start from a stage that has added them"
        )


def _objective(run: RunConfig) -> Iterator[Problem]:
    stage, _, number = (run.objective or "").partition(".")
    if run.objective is not None and (stage not in run.stage or not number or "." in number):
        fix = suggest(stage, run.stage, noun="stages")
        yield Problem(f"objective {run.objective!r} is no number of a stage", "objective", f"STAGE.NUMBER; {fix}")


def _twice(run: RunConfig) -> Iterator[Problem]:
    for key, names in (("tracking", list(map(str, run.tracking))), ("only", run.only)):
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Problem(f"{name} is named twice", key, f"{key}=[{','.join(dict.fromkeys(names))}]")


def _tokens(run: RunConfig) -> Iterator[Problem]:
    added = [*(run.model.image_markers or []), *run.model.new_tokens]
    where = "model.image_markers" if run.model.image_markers else "model.new_tokens"
    twice = sorted({text for text in added if added.count(text) > 1})
    if twice:
        yield Problem(f"{', '.join(twice)} is named twice", where, "each token once")
    if any(not text.strip() or text != text.strip() for text in added):
        yield Problem("a new token is empty, or has a space at an end", where, "such as <im_start>")
    if "<image>" in added:
        yield Problem("<image> marks the place of images and is no token", where, "another name")


def _rates(stage: TrainStage, where: str) -> Iterator[Problem]:
    optim = stage.optim
    used = {
        "lr": optim.lr if stage.tune.llm != "freeze" else None,
        "connector_lr": _rate(optim.connector_lr, optim.lr) if stage.tune.connector == "full" else None,
        "tower_lr": _rate(optim.tower_lr, optim.lr) if stage.tune.sees else None,
    }
    for name, rate in used.items():
        if rate == 0.0:
            yield Problem(
                f"{name} is 0: that part would never move", f"{where}.optim.{name}", "freeze the part, or give a rate"
            )
    if optim.connector_lr is not None and stage.tune.connector == "freeze":
        yield Problem(
            "connector_lr is set, but the connector is frozen", f"{where}.optim.connector_lr", "set it to null"
        )
    if optim.tower_lr is not None and stage.tune.tower == "freeze":
        yield Problem("tower_lr is set, but the vision tower is frozen", f"{where}.optim.tower_lr", "set it to null")
    if any(beta >= 1.0 for beta in optim.betas):
        yield Problem(f"betas {optim.betas} must be below 1", f"{where}.optim.betas", "[0.9, 0.999]")


def _rate(own: float | None, common: float) -> float:
    return common if own is None else own


def _batch(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    ranks = run.hardware.data_ranks
    if ranks == 0 or stage.global_batch % (stage.micro_batch * ranks) == 0:
        return  # too few ranks for a group are a problem of their own
    nearest = " or ".join(str(batch) for batch in derived.nearest_batches(stage, run.hardware))
    fitting = [n for n in range(stage.micro_batch, 0, -1) if stage.global_batch % (n * ranks) == 0]
    same = f"{where}.micro_batch={fitting[0]}, or " if fitting else ""
    yield Problem(
        f"global_batch {stage.global_batch} is no multiple of micro_batch {stage.micro_batch} x {ranks} rank(s)",
        f"{where}.global_batch",
        f"{same}{where}.global_batch={nearest}, which trains another way",
    )


def _one_process(stage: TrainStage | EvaluateStage, run: RunConfig, where: str) -> Iterator[Problem]:
    hardware = run.hardware
    ranks = derived.ranks(hardware)
    if hardware.launcher == "inline" and ranks > 1:
        yield Problem(
            f"launcher inline is one process, but there are {ranks} ranks",
            "hardware.launcher",
            "hardware.launcher=torchrun",
        )
    if isinstance(stage, TrainStage) and stage.engine == "plain" and ranks > 1:
        yield Problem("engine plain is one process", f"{where}.engine", f"{where}.engine=deepspeed")


def _zero(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    if stage.engine == "deepspeed" and stage.zero == 0 and run.hardware.precision == "bf16":
        # DeepSpeed's bf16 optimizer at stage 0 takes a step with zero gradients at start: Adam's count is one ahead.
        yield Problem("bf16 with ZeRO 0 trains wrongly in DeepSpeed", f"{where}.zero", f"{where}.zero=1 or more")
    if stage.engine == "deepspeed" and stage.zero == 3 and stage.tune.llm == "qlora":
        yield Problem("ZeRO-3 would cut the packed weights into pieces", f"{where}.zero", f"{where}.zero=2")


def _adapted(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    if stage.tune.adapters and stage.init_from is None and run.model.llm.arguments.get("path") is None:
        yield Problem(
            f"tune.llm is {stage.tune.llm}, but the LLM's weights are made at random and lie in no folder",
            f"{where}.tune.llm",
            "give model.llm.path, or start from a stage (init_from)",
        )


_TRAIN = (TrainStage,)
RULES = (
    Rule("new-tokens", "Tokens that are added have a name of their own and are named once.",
         ("model.image_markers", "model.new_tokens"), _tokens),
    Rule("objective", "A sweep's objective is a number of one of the run's stages.", ("objective",), _objective),
    Rule("once", "Trackers, and stages to run, are named once.", ("tracking", "only"), _twice),
    Rule("something-trains", "A training stage trains at least one part.", ("stage.*.tune",), _something_trains,
         of=_TRAIN, alone=True),
    Rule("quantization", "Quantization has values, which fit its bits, exactly where the LLM is tuned by QLoRA.",
         ("stage.*.tune.llm", "stage.*.quant", "stage.*.compat.quantised_head"), _quant, of=_TRAIN, alone=True),
    Rule("new-token-rows", "New tokens can be added, and their rows trained alone, while no rank holds only a shard of "
         "the embedding.", ("stage.*.tune.llm", "stage.*.zero", "stage.*.init_from", "model.new_tokens"), _new_tokens,
         of=_TRAIN),
    Rule("rates", "Every part that is trained has a rate above 0, and no frozen one has a rate.",
         ("stage.*.optim", "stage.*.tune"), _rates, of=_TRAIN, alone=True),
    Rule("even-batch", "The global batch is a multiple of micro batch x ranks.",
         ("stage.*.global_batch", "stage.*.micro_batch", "hardware"), _batch, of=_TRAIN),
    Rule("one-process", "The plain engine and the inline launcher run on one rank.",
         ("stage.*.engine", "hardware.launcher", "hardware.ranks_per_node", "hardware.nodes"), _one_process,
         of=(TrainStage, EvaluateStage)),
    Rule("zero-stage", "DeepSpeed trains in bf16 at ZeRO 1 or more, and quantized weights below ZeRO-3.",
         ("stage.*.zero", "stage.*.tune.llm", "hardware.precision"), _zero, of=_TRAIN),
    Rule("adapters-have-a-base", "Adapters are trained on an LLM that is read from a folder or comes from a stage.",
         ("stage.*.tune.llm", "stage.*.init_from", "model.llm.path"), _adapted, of=_TRAIN),
)  # fmt: skip
