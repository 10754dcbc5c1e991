"""The stage that trains: what is trained, on which data, by which optimizer, in which engine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from vlmrun.config.marks import Neutral, Parent, Source, Volatile
from vlmrun.config.schema.base import Aspect, Color, Count, Factor, Few, Fraction, Node, Positive, Rate, Seed, Size
from vlmrun.config.schema.stage import StageNode

DRAWN = frozenset({"vlmrun.data.shapes.prepare"})  # what makes data of opaque RGB images only
Tuning = Literal["freeze", "full", "lora", "qlora", "new_tokens"]


class Tune(Node):
    """What happens to each part: left alone, trained whole, or trained through LoRA adapters.

    `qlora` is `lora` on an LLM whose frozen weights are held in few bits (`Quant`). `new_tokens` trains the input
    embedding rows of the tokens that `model.image_markers` and `model.new_tokens` added, and nothing else of the LLM.
    """

    llm: Tuning
    tower: Literal["freeze", "full"]
    connector: Literal["freeze", "full"]

    @property
    def adapters(self) -> bool:
        """Whether the LLM is trained through adapters."""
        return self.llm in ("lora", "qlora")


class Lora(Node):
    """Adapter shape, and what of the LLM trains whole beside the adapters.

    `targets`: `all-linear` (all but the output head), last names of the LLM's linear layers, or a regular expression
    that the whole of a layer's name matches, `llm.` in front (`llm\\..*\\.self_attn\\.(q|k|v|o)_proj`).
    """

    r: Annotated[int, Field(ge=1, le=65_536)]
    alpha: Factor
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)]
    targets: str | list[str]
    modules_to_save: list[str]  # last names of modules of the LLM that train whole, such as embed_tokens
    bias: Literal["none", "all", "lora_only"]  # which biases of the LLM are trained too


class Quant(Node):
    """How bitsandbytes holds the frozen weights of an LLM under `tune.llm: qlora`."""

    bits: Literal[4, 8]
    type: Literal["nf4", "fp4"]  # of 4 bits
    double: bool  # of 4 bits: the scales are quantized as well


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
    quantised_head: bool  # qlora: the output head in few bits as well
    # Pai-Megatron-Patch: a sample whose key contains llava is asked its image alone; 4: shards are part of keys
    llava_prompt: Annotated[Literal["energon4", "energon7"] | None, Neutral(None)]
    # take images as `convert("RGB")` leaves them: transparency and EXIF orientation dropped, 16-bit gray clipped to
    # white. In keys null is what counts, through `image_background`
    images: Annotated[Literal["upstream"] | None, Neutral("upstream"), Volatile]


class Optim(Node):
    """AdamW and its schedule. Part rates default to `lr` when null, and all of them fall in proportion."""

    lr: Rate
    connector_lr: Rate | None
    tower_lr: Rate | None
    weight_decay: Rate
    weight_decay_end: Annotated[Rate | None, Neutral(None)]  # what it grows to over all updates; null: it stays
    weight_decay_schedule: Annotated[Literal["constant", "linear", "cosine"], Neutral("constant")]
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    eps: Factor
    schedule: Literal["cosine", "linear", "polynomial", "constant", "inverse_sqrt", "wsd"]
    power: Annotated[Factor, Neutral(1.0)]  # of polynomial; 1: linear
    min_lr_ratio: Fraction  # share of the rate that every schedule but constant ends at
    min_lr: Annotated[Rate | None, Neutral(None)]  # the same as a rate, of `lr`; null: min_lr_ratio tells
    decay_steps: Annotated[Positive | None, Neutral(None)]  # updates until the lowest rate, warm-up included; null: all
    cooldown_steps: Annotated[Positive | None, Neutral(None)]  # wsd: updates in which the rate falls at the end
    cooldown_ratio: Annotated[Fraction | None, Neutral(None)]  # the same as a share of all; one of the two is null
    cooldown_shape: Annotated[Literal["linear", "cosine", "exponential", "one_minus_sqrt"], Neutral("cosine")]
    warmup_ratio: Fraction | None  # share of the steps; the first update has rate 0, as in transformers
    warmup_steps: Count | None  # the same in updates; one of the two is null
    warmup_from: Annotated[Rate, Neutral(0.0)]  # rate that the warm-up begins at
    max_grad_norm: Rate  # 0 = no clipping


class Fp16(Node):
    """Dynamic loss scaling: begins at 2 ** initial_scale_power, halves on overflow, doubles after a quiet window."""

    loss_scale_window: Positive  # updates without an overflow before the scale doubles
    initial_scale_power: Annotated[int, Field(ge=0, le=64)]
    hysteresis: Positive  # overflows before the scale is halved
    min_loss_scale: Positive


class DeepSpeed(Node):
    """What DeepSpeed is told besides stage, offload and batch, by its own names. Each number is of those ZeRO stages
    that know it. Null: from the LLM's width, as transformers fills in "auto".
    """

    config: str | None  # a DeepSpeed JSON of one's own, laid over all of this
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
    """Evaluation during training, on data that is not trained on; it never changes what is trained."""

    steps: Positive  # every so many updates, and after the last
    data: Annotated[list[str], Field(min_length=1), Source]
    max_samples: Positive | None  # a fixed choice of so many; null: all
    generate: Count  # of the first so many the answer is generated and kept in samples.jsonl
    max_new_tokens: Positive


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
    """Evaluations never change what is trained, but with keep_best they choose the model that is kept."""
    return {} if stage.keep_best is None else {"eval": stage.eval}


class Order(Node):
    """The order of samples that megatron-energon's loader has, whatever ranks and workers there are here."""

    name: Literal["energon4", "energon7"]
    ranks: Few  # data-parallel ranks there
    workers: Annotated[int, Field(ge=0, le=4096)]  # loader processes of each there
    micro_batch: Positive  # samples that one of them gives at a time
    slice_samples: Positive | None  # a shard is read in slices of about so many samples; null: whole
    buffer: Positive | None  # samples that each next one is drawn from; null: none


class TrainStage(StageNode):
    """Train some parts on some data."""

    kind: Literal["train"]
    init_from: Annotated[str | None, Parent]  # a stage, an artifact folder, or null: the parts as `model` names them
    data: Annotated[list[str], Field(min_length=1), Source]
    data_weights: list[Factor] | None  # passes over each source in one epoch; null: one each
    group_by_modality_length: bool  # batches of like length, images and text apart
    order: Annotated[Order | None, Neutral(None)]  # of another project's loader; null: ours, as `seed` says
    packing: Packing | None  # several samples in a row, each seeing only itself; a batch then counts rows
    template: str | None
    image_aspect: Aspect
    image_background: Annotated[Color, Neutral("#ffffff"), Volatile(unless=_seen)]  # behind transparent images
    image_decode: Literal["exact", "draft"]  # draft: JPEGs at a fraction of their size; faster, other last bits
    image_cache: Annotated[str | None, Volatile]  # folder for prepared images, shared by ranks, workers and runs
    tune: Tune
    lora: Lora | None
    quant: Quant | None
    optim: Optim
    compat: Compat
    loss: Literal["token_mean", "micro_mean"]
    loss_head: Annotated[Literal["chunked", "plain", "liger"], Volatile]  # how it comes from hidden states
    loss_chunk: Annotated[Positive, Volatile]  # chunked: positions whose logits exist at a time
    epochs: Factor | None  # null: as many as max_steps needs
    max_steps: Positive | None
    global_batch: Positive
    micro_batch: Annotated[Positive, Volatile(unless=_cut)]  # samples per forward and rank
    zero: Annotated[Literal[0, 1, 2, 3], Volatile]
    offload: Annotated[Literal["none", "cpu", "nvme"], Volatile]  # where optimizer state lies, and ZeRO-3's parameters
    engine: Annotated[Literal["deepspeed", "fsdp", "plain"], Volatile(unless=_engine)]
    deepspeed: Annotated[DeepSpeed, Volatile(unless=_rounded)]
    gradient_checkpointing: Annotated[bool | Positive, Volatile]  # n: units of n blocks of the LLM keep their input
    offload_checkpoints: Annotated[bool, Volatile]  # what gradient checkpointing keeps waits in host memory
    save_steps: Annotated[Positive, Volatile]
    save_total_limit: Annotated[Positive, Volatile]
    save_async: Annotated[bool, Volatile]  # sync, hash and name a written checkpoint while training goes on
    eval: Annotated[HeldOut | None, Volatile(unless=_evaluations)]  # in the key only with keep_best
    keep_best: Literal["loss", "exact_match"] | None  # the model of the best evaluation is the result; null: the last
    log_steps: Annotated[Positive, Volatile]
    workers: Annotated[int, Field(ge=0, le=4096), Volatile]  # loader processes per rank
    prefetch: Annotated[Few, Volatile]  # micro batches that each of them makes ahead
    seed: Seed
