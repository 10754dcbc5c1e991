"""The stage that trains: what is trained, on which data, by which optimizer, in which engine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from vlmrun.config.marks import Neutral, Parent, Source, Volatile
from vlmrun.config.schema.base import (
    Aspect,
    Color,
    Count,
    Every,
    Factor,
    Few,
    Node,
    Positive,
    Rate,
    Seed,
    Size,
)
from vlmrun.config.schema.optim import Ema, Optim
from vlmrun.config.schema.stage import StageNode
from vlmrun.config.schema.tune import Lora, Quant, Tune

DRAWN = frozenset({"vlmrun.data.shapes.prepare"})  # what makes data of opaque RGB images only


class Compat(Node):
    """Published quirks of the original codes, each off by default. docs/parity.md says what each one does."""

    # mask by that project's arithmetic
    labels: Literal["llava", "kollava", "denseconnector", "bunny", "minicpm"] | None
    records: bool  # take records as upstream did: drop a leading answer, keep empty turns, one image tag a turn
    mask_pad_tokens: bool  # tokens equal to the padding token are hidden wherever they stand
    v0_is_v1: bool  # `--version v0` trained the v1 format after 2023-10-24
    llama3_system_header: bool  # DenseConnector's llama_3 answers under a header that says system
    tower_no_grad: bool  # Bunny before 2024-11-18: an unfrozen tower gets no gradient
    fp16_tower: bool  # the tower in fp16 whenever bf16 is off
    offload_schedule: bool  # zero3_offload.json: WarmupLR in place of the schedule, one parameter group
    decay_unlisted_norms: bool  # weight decay on the norms that old transformers did not know as such
    transformers_order: Literal["4.37", "4.41"] | None  # the order of samples of that version's Trainer in one process
    quantised_head: bool  # qlora: the output head in 4 or 8 bits as well
    # Pai-Megatron-Patch: a sample whose key contains llava is asked its image alone; 4: shards are part of keys
    llava_prompt: Annotated[Literal["energon4", "energon7"] | None, Neutral(None)]
    # take images as `convert("RGB")` leaves them: transparency, EXIF orientation and color profiles dropped, gray of
    # 16 bits clipped to white. In keys null is what counts, through `image_background`
    images: Annotated[Literal["upstream"] | None, Neutral("upstream"), Volatile]


class Fp16(Node):
    """Dynamic loss scaling: begins at 2 ** initial_scale_power, halves on overflow, doubles after a quiet window."""

    loss_scale_window: Positive  # updates without an overflow before the scale doubles
    initial_scale_power: Annotated[int, Field(ge=0, le=64)]
    hysteresis: Positive  # overflows before the scale is halved
    min_loss_scale: Positive


class DeepSpeed(Node):
    """What DeepSpeed is given besides stage, offload and batch, by its own names. Each number is of those ZeRO stages
    that know it. Null: from the LLM's width, as transformers fills in "auto".
    """

    config: str | None  # a DeepSpeed JSON of one's own, merged over all of this
    overlap_comm: bool  # on GPUs
    contiguous_gradients: bool
    reduce_scatter: bool
    round_robin_gradients: bool
    reduce_bucket_size: Size | None
    allgather_bucket_size: Size
    sub_group_size: Size
    stage3_prefetch_bucket_size: Annotated[int, Field(ge=0, le=2**53)] | None
    stage3_param_persistence_threshold: Annotated[int, Field(ge=0, le=2**53)] | None
    stage3_max_live_parameters: Size
    stage3_max_reuse_distance: Size
    offload_param: Literal["none", "cpu", "nvme"] | None  # null: as `offload` says
    pin_memory: bool
    nvme_path: str | None  # folder on the drive, for offload: nvme
    zero_hpz_partition_size: Positive  # ZeRO++: ranks that share a second copy of the weights, usually those of a node
    zero_quantized_weights: bool  # ZeRO++: weights travel in 8 bits, on GPUs
    zero_quantized_gradients: bool  # ZeRO++: gradients travel in 4 bits, on GPUs
    fp16: Fp16


class HeldOut(Node):
    """Evaluation during training, on data that is not trained on; only `patience` changes what is trained."""

    steps: Every  # every N updates, share of all updates, or epoch; and after the last update
    data: Annotated[list[str], Field(min_length=1), Source]
    max_samples: Positive | None  # a fixed choice of N; null: all
    generate: Count  # of the first N the answer is generated and kept in samples.jsonl
    max_new_tokens: Positive
    at_start: Annotated[bool, Neutral(False)]  # also before the first update
    # training stops after N evaluations in a row without a better one, by keep_best or the loss; null: never
    patience: Annotated[Positive | None, Neutral(None)]
    min_delta: Annotated[Rate, Neutral(0.0)]  # what an evaluation must gain on the best one to count for patience


class Packing(Node):
    """How samples are put into rows (`data/packing.py`)."""

    length: Positive  # tokens of a row
    method: Literal["even_fit", "best_fit", "first_fit", "in_order"]
    window: Positive  # samples that are sorted into rows together; in_order: of no meaning


def _cut(stage: TrainStage, run: Any) -> dict[str, Any]:
    """How the batch is cut matters to a mean of means, to an order of micro batches, and to images that see padding."""
    tower = run.model.tower.arguments
    together = tower.get("sees_padding") is True or tower.get("positions") == "strip"
    ordered = stage.group_by_modality_length or stage.compat.transformers_order is not None
    if stage.loss != "micro_mean" and not ordered and not together:
        return {}
    return {"cut": [stage.micro_batch, run.hardware.data_ranks]}


def _seen(stage: TrainStage, run: Any) -> dict[str, Any]:
    """How transparent, turned and deep images are seen. Keys without it mean upstream's way; data that vlmrun draws has
    no image that can be seen in two ways."""
    drawn = all((made := run.data[name].prepare) is not None and made.target in DRAWN for name in stage.data)
    return {} if drawn or stage.compat.images == "upstream" else {"image_background": stage.image_background}


def _engine(stage: TrainStage, run: Any) -> dict[str, Any]:
    """DeepSpeed trains bf16 weights with fp32 masters, the plain engine fp32 weights under autocast."""
    return {} if run.hardware.precision == "fp32" else {"engine": stage.engine}


def _rounded(stage: TrainStage, run: Any) -> dict[str, Any]:
    """ZeRO++ rounds what ranks send each other."""
    numbers = stage.deepspeed
    rounded = [numbers.zero_quantized_weights, numbers.zero_quantized_gradients]
    return {"rounded": rounded} if stage.engine == "deepspeed" and stage.zero == 3 and any(rounded) else {}


def _evaluations(stage: TrainStage, run: Any) -> dict[str, Any]:
    """Evaluations choose the model that is kept, with keep_best, and when training stops, with patience."""
    stops = stage.eval is not None and stage.eval.patience is not None
    return {"eval": stage.eval} if stops or stage.keep_best is not None else {}


class Order(Node):
    """The order of samples that megatron-energon's loader has, whatever ranks and workers there are here."""

    name: Literal["energon4", "energon7"]
    ranks: Few  # data-parallel ranks there
    workers: Annotated[int, Field(ge=0, le=4096)]  # loader processes of each there
    micro_batch: Positive  # samples that one of them gives at a time
    slice_samples: Positive | None  # a shard is read in slices of about N samples; null: whole
    buffer: Positive | None  # samples that each next one is drawn from; null: none


class TrainStage(StageNode):
    """Train some parts on some data."""

    kind: Literal["train"]
    init_from: Annotated[str | None, Parent]  # a stage, an artifact folder, or null: the parts as `model` names them
    data: Annotated[list[str], Field(min_length=1), Source]
    data_weights: list[Factor] | None  # passes over each source in one epoch; null: one each
    max_samples: Annotated[Positive | None, Neutral(None)]  # only the first N usable records of all sources; null: all
    group_by_modality_length: bool  # batches of like length, images and text apart
    order: Annotated[Order | None, Neutral(None)]  # of another project's loader; null: ours, as `seed` says
    packing: Packing | None  # several samples in a row, each seeing only itself; a batch then counts rows
    template: str | None
    image_aspect: Aspect
    image_background: Annotated[Color, Neutral("#ffffff"), Volatile(unless=_seen)]  # behind transparent images
    image_decode: Literal["exact", "draft"]  # draft: JPEGs at a fraction of their size; faster, other last bits
    image_cache: Annotated[str | None, Volatile]  # folder for prepared images, shared by ranks, workers and runs
    # folder for features of a frozen tower, shared by ranks and runs
    tower_cache: Annotated[str | None, Neutral(None), Volatile]
    tune: Tune
    lora: Lora | None
    tower_lora: Annotated[Lora | None, Neutral(None)]  # of tune.tower: lora; null: as lora
    quant: Quant | None
    optim: Optim
    ema: Annotated[Ema | None, Neutral(None)]
    compat: Compat
    loss: Literal["token_mean", "micro_mean"]
    loss_head: Annotated[Literal["chunked", "plain", "liger"], Volatile]  # how it comes from hidden states
    loss_chunk: Annotated[Positive, Volatile]  # chunked: positions whose logits exist at a time
    epochs: Factor | None  # null: as many as max_steps needs
    max_steps: Positive | None
    until_loss: Annotated[
        Rate | None, Neutral(None)
    ]  # training ends after an update with a lower loss; null: it does not
    global_batch: Positive
    micro_batch: Annotated[Positive, Volatile(unless=_cut)]  # samples per forward and rank
    zero: Annotated[Literal[0, 1, 2, 3], Volatile]
    offload: Annotated[Literal["none", "cpu", "nvme"], Volatile]  # where optimizer state is, and ZeRO-3's parameters
    engine: Annotated[Literal["deepspeed", "fsdp", "plain"], Volatile(unless=_engine)]
    deepspeed: Annotated[DeepSpeed, Volatile(unless=_rounded)]
    gradient_checkpointing: Annotated[bool | Positive, Volatile]  # n: units of n blocks of the LLM keep their input
    offload_checkpoints: Annotated[bool, Volatile]  # what gradient checkpointing keeps waits in host memory
    save_steps: Annotated[Every, Volatile]  # a checkpoint every N updates, share of all updates, or epoch
    save_total_limit: Annotated[Positive, Volatile]
    save_async: Annotated[bool, Volatile]  # sync, hash and name a written checkpoint while training continues
    eval: Annotated[HeldOut | None, Volatile(unless=_evaluations)]  # in the key with keep_best or patience
    keep_best: (
        str | None
    )  # by what the best evaluation's model is the result: loss, exact_match, a benchmark; null: last
    log_steps: Annotated[Positive, Volatile]
    record_losses: Annotated[bool, Neutral(False), Volatile]  # the ledger of records has their losses too
    workers: Annotated[int, Field(ge=0, le=4096), Volatile]  # loader processes per rank
    prefetch: Annotated[Few, Volatile]  # micro batches that each of them makes ahead
    seed: Seed
