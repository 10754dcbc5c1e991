"""Rules about the order of samples, precision and the published quirks of a training stage."""

from __future__ import annotations

from collections.abc import Iterator

from vlmrun.checks.table import Rule
from vlmrun.config.schema import RunConfig, TrainStage
from vlmrun.errors import Problem


def _order(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    weights = stage.data_weights
    if weights is not None and len(weights) != len(stage.data):
        yield Problem(
            f"{len(stage.data)} data sources, {len(weights)} weights", f"{where}.data_weights", "one for each source"
        )
    if stage.compat.transformers_order is not None and (weights is not None or run.hardware.data_ranks > 1):
        yield Problem(
            "transformers_order is the order of one process over the data as they are",
            f"{where}.compat.transformers_order",
            "null, or one rank and data_weights=null",
        )


def _first(stage: TrainStage, where: str) -> Iterator[Problem]:
    if stage.max_samples is not None and stage.order is not None:
        yield Problem(
            "order is that of whole shards, and max_samples takes the first records of them",
            f"{where}.max_samples",
            f"{where}.max_samples=null, or {where}.order=null",
        )


def _pictures(stage: TrainStage, where: str) -> Iterator[Problem]:
    if stage.image_decode == "draft" and stage.image_aspect in ("anyres", "slices"):
        yield Problem(
            f"a draft is too small for the tiles of {stage.image_aspect}",
            f"{where}.image_decode",
            f"{where}.image_decode=exact",
        )


def _packing(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    """Rules about samples that share rows."""
    if stage.packing is None:
        return
    if stage.packing.length < run.model.max_length:
        yield Problem(
            f"a sample may have {run.model.max_length} tokens, but a row only {stage.packing.length}",
            f"{where}.packing.length",
            f"{where}.packing.length={run.model.max_length} or more, or a smaller model.max_length",
        )
    orders = {
        "group_by_modality_length": stage.group_by_modality_length,
        "compat.transformers_order": stage.compat.transformers_order is not None,
    }
    for name in (name for name, used in orders.items() if used):
        yield Problem(
            f"{name} is an order of batches of samples, and packing makes batches of rows",
            f"{where}.{name}",
            f"{where}.packing=null, or no {name}",
        )


def _fp16(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    if run.hardware.precision != "fp16":
        return
    if stage.engine != "deepspeed":
        yield Problem(
            f"fp16 needs DeepSpeed's loss scaling, which engine {stage.engine} has not",
            f"{where}.engine",
            f"{where}.engine=deepspeed, or another hardware.precision",
        )
    elif stage.zero == 0:
        yield Problem("DeepSpeed scales losses for fp16 at ZeRO 1 or more", f"{where}.zero", f"{where}.zero=2")


def _quirks(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    compat = stage.compat
    if compat.labels not in (None, "minicpm") and stage.image_aspect == "slices":
        yield Problem(
            f"{compat.labels} never cut images into slices: its labels cannot be counted there",
            f"{where}.compat.labels",
            f"{where}.compat.labels=null, or another image_aspect",
        )
    if compat.labels == "minicpm" and compat.records:
        yield Problem(
            "records are taken as LLaVA's code took them, and MiniCPM-V's is another",
            f"{where}.compat.records",
            f"{where}.compat.records=false",
        )
    if compat.tower_no_grad and stage.tune.tower == "freeze":
        yield Problem(
            "tower_no_grad is about a tower that is trained, and it is frozen",
            f"{where}.compat.tower_no_grad",
            f"{where}.compat.tower_no_grad=false, or {where}.tune.tower=full",
        )
    if compat.fp16_tower and stage.engine == "deepspeed" and stage.zero == 3:
        yield Problem("ZeRO-3 holds one type of weights only", f"{where}.compat.fp16_tower", f"{where}.zero=2")
    if compat.fp16_tower and run.hardware.precision == "bf16":
        yield Problem(
            "fp16_tower is what happens when bf16 is off",
            f"{where}.compat.fp16_tower",
            "hardware.precision=fp32, or compat.fp16_tower=false",
        )
    rates = {stage.optim.connector_lr, stage.optim.tower_lr} - {None}
    if compat.offload_schedule and rates:
        yield Problem(
            "offload_schedule has one group of parameters, and so one rate",
            f"{where}.compat.offload_schedule",
            "connector_lr=null and tower_lr=null, as what ran",
        )


def _held_out(stage: TrainStage, where: str) -> Iterator[Problem]:
    held_out = stage.eval
    if held_out is not None:
        both = sorted(set(held_out.data) & set(stage.data))
        if both:
            yield Problem(
                f"{', '.join(both)} is trained on: what is evaluated on must be held out",
                f"{where}.eval.data",
                "name other data",
            )
        if held_out.max_samples is not None and held_out.generate > held_out.max_samples:
            yield Problem(
                f"{held_out.generate} answers of {held_out.max_samples} samples",
                f"{where}.eval.generate",
                "at most max_samples",
            )
        if held_out.min_delta and held_out.patience is None:
            yield Problem(
                "min_delta is what an evaluation must gain for patience, which is null",
                f"{where}.eval.min_delta",
                f"{where}.eval.patience=3, or min_delta=0.0",
            )
    if stage.keep_best is not None and held_out is None:
        yield Problem(
            "keep_best needs evaluations during training",
            f"{where}.keep_best",
            f"'{where}.eval={{steps: 100, data: [NAME], max_samples: 256, generate: 0, max_new_tokens: 16}}'",
        )
    elif stage.keep_best == "exact_match" and held_out is not None and held_out.generate == 0:
        yield Problem(
            "keep_best=exact_match compares generated answers, and none are generated",
            f"{where}.eval.generate",
            f"{where}.eval.generate=64, or {where}.keep_best=loss",
        )


def _ledger(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    if not stage.record_losses:
        return
    if stage.loss_head == "liger":
        yield Problem(
            "liger sums the losses of a batch without giving those of its tokens",
            f"{where}.record_losses",
            f"{where}.loss_head=chunked, or {where}.record_losses=false",
        )
    if run.hardware.sequence_parallel > 1:
        yield Problem(
            "several ranks share every sequence, and none of them has all losses of a record",
            f"{where}.record_losses",
            f"{where}.record_losses=false, or hardware.sequence_parallel=1",
        )


_TRAIN = (TrainStage,)
RULES = (
    Rule("order-of-samples", "Each data source has one weight, and transformers' order has one process and no weights.",
         ("stage.*.data", "stage.*.data_weights", "stage.*.compat.transformers_order"), _order, of=_TRAIN),
    Rule("first-records", "The order of another project's loader is that of all records.",
         ("stage.*.max_samples", "stage.*.order"), _first, of=_TRAIN, alone=True),
    Rule("record-losses", "Losses of records are kept where one rank computes that of every token.",
         ("stage.*.record_losses", "stage.*.loss_head", "hardware.sequence_parallel"), _ledger, of=_TRAIN),
    Rule("drafts", "Images that are cut into tiles or slices are decoded at full size.",
         ("stage.*.image_decode", "stage.*.image_aspect"), _pictures, of=_TRAIN, alone=True),
    Rule("packing", "A row has room for the longest sample, and nothing else orders the samples of packed rows.",
         ("stage.*.packing", "model.max_length", "stage.*.group_by_modality_length"), _packing, of=_TRAIN),
    Rule("fp16", "fp16 trains in DeepSpeed, at ZeRO 1 or more, which scales losses.",
         ("hardware.precision", "stage.*.engine", "stage.*.zero"), _fp16, of=_TRAIN),
    Rule("compat", "A published quirk is asked for only where it can be reproduced.", ("stage.*.compat",), _quirks,
         of=_TRAIN),
    Rule("held-out", "Data that a training is evaluated on are not trained on, and the best model is chosen by what is "
         "evaluated.", ("stage.*.eval", "stage.*.keep_best", "stage.*.data"), _held_out, of=_TRAIN, alone=True),
)  # fmt: skip
