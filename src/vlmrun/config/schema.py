"""The typed shape of a composed run. No defaults live here: every value stands in `conf/`, so `--cfg job` shows it.

A field marked `Volatile` moves work about without changing the result (how a batch is cut, how often to save); it is
left out of a stage's key, so changing it reuses or continues what exists (see `run/identity.py`). One marked
`Neutral(value)` is left out at that value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator


class _VolatileMark:
    """Marker in a field's metadata: not part of a stage's identity."""


Volatile = _VolatileMark()


@dataclass(frozen=True)
class Neutral:
    """Marker in a field's metadata: at this value the field does nothing, and is left out of a stage's identity.

    A field that is added later is marked so: the keys of all that was run without it stay as they were, and a file or
    an override written before it is still whole.
    """

    value: Any


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0.0)]
# Names become parts of folder names.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")]

Precision = Literal["fp32", "bf16", "fp16"]
FieldMap = dict[str, str | None]
Aspect = Literal["square", "pad", "pad_after", "anyres", "slices"]  # how a picture comes to the tower's shape
Tuning = Literal["freeze", "full", "lora", "qlora", "new_tokens"]


class Node(BaseModel):
    """Base of every configuration node: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _as_before_it_was_there(cls, values: Any) -> Any:
        """Fields marked `Neutral` may be left out."""
        if not isinstance(values, dict):
            return values
        added = {
            name: mark.value
            for name, field in cls.model_fields.items()
            for mark in field.metadata
            if isinstance(mark, Neutral) and name not in values
        }
        return {**values, **added}


class Target(Node):
    """A part built by `build.py`: `_target_` names a class or function, every other key is one of its arguments."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", populate_by_name=True)

    target: str = Field(alias="_target_")

    @property
    def arguments(self) -> dict[str, Any]:
        """All keys but `_target_`."""
        return dict(self.model_extra or {})


class Tiles(Node):
    """How a picture is cut under `image_aspect: anyres`, and how its tiles are put together again."""

    grids: Annotated[list[Annotated[list[Positive], Field(min_length=2, max_length=2)]], Field(min_length=1)]  # [w, h]
    merge: Literal["flat", "spatial", "spatial_unpad"]


class Slices(Node):
    """How a picture is cut under `image_aspect: slices` (MiniCPM-V), and what stands around the slices in the text."""

    max_slices: Positive  # cells of the grid, at most; 1: a picture is never cut
    resolution: Positive  # a cell has about the area of a square of so many pixels
    marks: Literal["nested", "flat"] | None  # nested: 2.0, 2.5; flat: 2.6, where cells have <slice> marks; null: none
    image_ids: Literal["never", "sliced", "always"]  # the picture's number before it, always or when it is cut


def _kind_of_cutting(value: Any) -> str:
    keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", {})
    return "tiles" if "grids" in keys or "merge" in keys else "slices"


Cutting = Annotated[Annotated[Tiles, Tag("tiles")] | Annotated[Slices, Tag("slices")], Discriminator(_kind_of_cutting)]


class ModelConfig(Node):
    """The three parts and how text is laid out between them."""

    llm: Target
    tower: Target
    connector: Target
    template: str  # how turns become text, unless a stage says otherwise
    max_length: Positive  # tokens a sample may have, image tokens included
    image_markers: Annotated[list[str], Field(min_length=2, max_length=2)] | None  # tokens around every image, added
    new_tokens: list[str]  # further tokens added to the vocabulary; the rows of all added ones start at the mean
    tiles: Cutting | None  # for image_aspect: anyres (Tiles) or slices (Slices)


class About(Node):
    """Where a data set comes from. Shown by `check` when a file is missing, and by `vlmrun recipes`."""

    url: str
    licence: str
    records: Positive | None  # that the file should have; None: not published
    fetch: str  # how to get it, in one or two sentences


class DataConfig(Node):
    """One source of samples. Paths are relative to the prepared folder when `prepare` is set."""

    format: str
    split: Annotated[str | None, Neutral(None)]  # energon: a part of its split.yaml; null: train
    fields: Annotated[FieldMap | None, Neutral(None)]  # of shards: image, context, answers; null: as they say
    annotations: str  # of shards: their folder
    images: str | None  # folder that every image path must stay inside
    on_error: Literal["fail", "skip"]  # skip: counted and listed in skipped.jsonl
    prepare: Target | None  # makes the files, as a job of its own with an artifact of its own
    about: Annotated[About | None, Volatile]


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

    r: Positive
    alpha: Annotated[float, Field(gt=0)]
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)]
    targets: str | list[str]
    modules_to_save: list[str]  # last names of modules of the LLM that train whole, such as embed_tokens
    bias: Literal["none", "all", "lora_only"]  # which biases of the LLM are trained too


class Quant(Node):
    """How bitsandbytes holds the frozen weights of an LLM under `tune.llm: qlora`."""

    bits: Literal[4, 8]
    type: Literal["nf4", "fp4"]  # of 4 bits
    double: bool  # of 4 bits: the scales are quantised as well


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
    # Pai-Megatron-Patch: a sample whose key contains llava is asked its picture alone; 4: shards are part of keys
    llava_prompt: Annotated[Literal["energon4", "energon7"] | None, Neutral(None)]


class Optim(Node):
    """AdamW and its schedule. Part rates default to `lr` when null, and all of them fall in proportion."""

    lr: Rate
    connector_lr: Rate | None
    tower_lr: Rate | None
    weight_decay: Rate
    weight_decay_end: Annotated[Rate | None, Neutral(None)]  # what it grows to over all updates; null: it stays
    weight_decay_schedule: Annotated[Literal["constant", "linear", "cosine"], Neutral("constant")]
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    eps: Annotated[float, Field(gt=0)]
    schedule: Literal["cosine", "linear", "polynomial", "constant", "inverse_sqrt", "wsd"]
    power: Annotated[float, Field(gt=0), Neutral(1.0)]  # of polynomial; 1: linear
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
    initial_scale_power: Count
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
    reduce_bucket_size: Positive | None
    allgather_bucket_size: Positive
    sub_group_size: Positive
    stage3_prefetch_bucket_size: Count | None
    stage3_param_persistence_threshold: Count | None
    stage3_max_live_parameters: Positive
    stage3_max_reuse_distance: Positive
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
    data: Annotated[list[str], Field(min_length=1)]
    max_samples: Positive | None  # a fixed choice of so many; null: all
    generate: Count  # of the first so many the answer is generated and kept in samples.jsonl
    max_new_tokens: Positive


class Packing(Node):
    """How samples are put into rows (`data/packing.py`)."""

    length: Positive  # tokens of a row
    method: Literal["even_fit", "best_fit", "first_fit", "in_order"]
    window: Positive  # samples that are sorted into rows together; in_order: of no meaning


class Order(Node):
    """The order of samples that megatron-energon's loader has, whatever ranks and workers there are here."""

    name: Literal["energon4", "energon7"]
    ranks: Positive  # data-parallel ranks there
    workers: Count  # loader processes of each there
    micro_batch: Positive  # samples that one of them gives at a time
    slice_samples: Positive | None  # a shard is read in slices of about so many samples; null: whole
    buffer: Positive | None  # samples that each next one is drawn from; null: none


class TrainStage(Node):
    """Train some parts on some data."""

    kind: Literal["train"]
    init_from: str | None  # a stage, an artifact folder, or null: the parts as `model` names them
    data: Annotated[list[str], Field(min_length=1)]
    data_weights: list[Annotated[float, Field(gt=0)]] | None  # passes over each source in one epoch; null: one each
    group_by_modality_length: bool  # batches of like length, pictures and text apart
    order: Annotated[Order | None, Neutral(None)]  # of another project's loader; null: ours, as `seed` says
    packing: Packing | None  # several samples in a row, each seeing only itself; a batch then counts rows
    template: str | None
    image_aspect: Aspect
    image_decode: Literal["exact", "draft"]  # draft: JPEGs at a fraction of their size; faster, other last bits
    image_cache: Annotated[str | None, Volatile]  # folder for prepared pictures, shared by ranks, workers and runs
    tune: Tune
    lora: Lora | None
    quant: Quant | None
    optim: Optim
    compat: Compat
    loss: Literal["token_mean", "micro_mean"]
    loss_head: Annotated[Literal["chunked", "plain", "liger"], Volatile]  # how it comes from hidden states
    loss_chunk: Annotated[Positive, Volatile]  # chunked: positions whose logits exist at a time
    epochs: Annotated[float | None, Field(gt=0)]  # null: as many as max_steps needs
    max_steps: Positive | None
    global_batch: Positive
    micro_batch: Annotated[Positive, Volatile]  # samples per forward and rank; in the key only under micro_mean
    zero: Annotated[Literal[0, 1, 2, 3], Volatile]
    offload: Annotated[Literal["none", "cpu", "nvme"], Volatile]  # where optimizer state lies, and ZeRO-3's parameters
    engine: Annotated[Literal["deepspeed", "fsdp", "plain"], Volatile]
    deepspeed: Annotated[DeepSpeed, Volatile]
    gradient_checkpointing: Annotated[bool | Positive, Volatile]  # n: units of n blocks of the LLM keep their input
    offload_checkpoints: Annotated[bool, Volatile]  # what gradient checkpointing keeps waits in the computer's memory
    save_steps: Annotated[Positive, Volatile]
    save_total_limit: Annotated[Positive, Volatile]
    save_async: Annotated[bool, Volatile]  # sync, hash and name a written checkpoint while training goes on
    eval: Annotated[HeldOut | None, Volatile]  # in the key only with keep_best
    keep_best: Literal["loss", "exact_match"] | None  # the model of the best evaluation is the result; null: the last
    log_steps: Annotated[Positive, Volatile]
    workers: Annotated[Count, Volatile]  # loader processes per rank
    prefetch: Annotated[Positive, Volatile]  # micro batches that each of them makes ahead
    seed: Count


Kept = Literal["keep", "fp32", "bf16", "fp16"]  # the type of written weights; keep: each tensor's own
# The formats that are written, one module each in checkpoints/formats.
Format = Literal[
    "native", "hf_llava", "hf", "llava", "kollava", "bunny", "denseconnector", "mm_projector", "peft", "delta",
    "bnb4", "bnb8", "megatron", "minicpm",
]  # fmt: skip


class MergeStage(Node):
    """Fold a LoRA stage's adapters into its LLM, slice by slice."""

    kind: Literal["merge"]
    init_from: str
    adapters: list[str]  # further LoRA stages on the same base, whose changes are added
    weights: list[float] | None  # of init_from's adapter and of each further one; null: 1 each
    base: Literal["trained", "full"]  # of qlora: the weights in few bits and back, or the full-precision ones
    arithmetic: Literal["fp32", "fp16"]  # fp16: weights, change and sum are each rounded, as the original scripts do
    dtype: Kept


Density = Annotated[float, Field(gt=0.0, le=1.0)]
Weights = Annotated[list[float], Field(min_length=2)]
Decay = Annotated[float, Field(gt=0.0, lt=1.0)]
Sign = Literal["sum", "count"]


class Linear(Node):
    """Weighted mean (model soups, arXiv:2203.05482)."""

    name: Literal["linear"]
    sum: Literal["one", "normalize", "any"]  # weights must sum to 1, are divided by their sum, or are used as they are


class Slerp(Node):
    """From one model to another along a great circle; the second weight is how far."""

    name: Literal["slerp"]
    sum: Literal["one", "normalize"]


class TaskArithmetic(Node):
    """base + scale * sum(weight * change) (arXiv:2212.04089)."""

    name: Literal["task_arithmetic"]
    normalize: bool  # divide by the sum of the weights that took part
    scale: float


class Ties(Node):
    """Of every change the largest share, then one sign for each element (arXiv:2306.01708)."""

    name: Literal["ties"]
    density: Density | list[Density]  # share that is kept; one for all, or one for each model
    sign: Sign | None  # elected by weight (sum), by number (count), or not at all
    normalize: bool
    scale: float


class Dare(Node):
    """Of every change a random share (arXiv:2311.03099)."""

    name: Literal["dare"]
    density: Density | list[Density]
    rescale: bool  # what is kept is divided by its chance
    sign: Sign | None  # as in ties; null: DARE alone
    normalize: bool
    scale: float
    seed: Count


class Breadcrumbs(Node):
    """Of every change a share, without the very largest and the smallest (arXiv:2312.06795)."""

    name: Literal["breadcrumbs"]
    density: Density | list[Density]
    gamma: Annotated[float, Field(ge=0.0, lt=1.0)]  # share of the largest that is dropped
    sign: Sign | None
    normalize: bool
    scale: float


class Della(Node):
    """Of every change a random share, in which large ones of a row have better chances (arXiv:2406.11617)."""

    name: Literal["della"]
    density: Density | list[Density]
    epsilon: Annotated[float, Field(gt=0.0, lt=1.0)]  # chances run from density - epsilon to density + epsilon
    rescale: bool
    sign: Sign | None
    normalize: bool
    scale: float
    seed: Count


class ModelStock(Node):
    """Between base and mean, by how far the changes agree (arXiv:2403.19522); weights play no part."""

    name: Literal["model_stock"]


Vectors = TaskArithmetic | Ties | Dare | Breadcrumbs | Della | ModelStock  # methods that count changes from a base
Method = Annotated[
    Linear | Slerp | TaskArithmetic | Ties | Dare | Breadcrumbs | Della | ModelStock, Field(discriminator="name")
]


class Rule(Node):
    """Other weights for some tensors, such as a part or a layer."""

    tensors: str  # a regular expression, looked for in names such as tower.vision_model.encoder.layers.0.mlp.fc1.weight
    weights: Weights


class AverageStage(Node):
    """One model made of several finished ones with equal tensors."""

    kind: Literal["average"]
    models: Annotated[list[str], Field(min_length=2)]
    weights: Weights | None  # one for each model
    ema: Decay | None  # in place of weights: models from old to new, older ones fade
    rules: list[Rule]  # the first that fits a tensor's name gives its weights
    method: Method
    base_model: str | None  # what changes are counted from: a stage or an artifact folder
    dtype: Kept


class ConvertStage(Node):
    """Write a model as another format; whatever the source is, it is found out from its content."""

    kind: Literal["convert"]
    init_from: str  # a stage, an artifact, or the folder or file of a model in any format
    to: Format
    base_model: str | None  # the LLM or model that an adapter, a projector or a delta belongs to
    tower: str | None  # folder of the vision tower, when the source names one that is not here
    template: str | None  # when the source's format does not say; null: its family's usual one
    dtype: Kept
    tp: Literal[1, 2, 4, 8]  # megatron: tensor-parallel ranks
    skip: list[str]  # bnb4, bnb8: linear layers left as they are; empty: output head, tower, connector
    prove: Annotated[bool, Volatile]  # hf_llava: compare with plain transformers before it is kept


class EvaluateStage(Node):
    """Answer held-out questions and score them by exact match."""

    kind: Literal["evaluate"]
    init_from: str
    data: Annotated[list[str], Field(min_length=1)]
    template: str | None  # null: the one the model was trained with
    image_aspect: Aspect | None  # null: as the model was trained
    max_new_tokens: Positive
    batch: Annotated[Positive, Volatile]
    max_samples: Positive | None
    shuffle_control: bool  # ask again with every question given another question's picture
    seed: Count


class SearchStage(Node):
    """Try weights or parameters of an average, ask every model the questions, keep the best."""

    kind: Literal["search"]
    models: Annotated[list[str], Field(min_length=2)]
    weights: list[Weights] | None  # a list of weights to try
    divisions: Positive | None  # in place of weights: all multiples of 1/divisions that sum to 1
    grid: dict[str, Annotated[list[float], Field(min_length=1)]]  # parameters of the method: values to try of each
    rules: list[Rule]  # as in average, the same at every point
    method: Method
    base_model: str | None
    dtype: Kept
    data: Annotated[list[str], Field(min_length=1)]
    template: str | None
    image_aspect: Aspect | None
    max_new_tokens: Positive
    batch: Annotated[Positive, Volatile]
    max_samples: Positive | None
    score: Literal["accuracy", "accuracy_unseen"]
    seed: Count


Asking = EvaluateStage | SearchStage  # stages that put questions to a model
Reading = TrainStage | Asking  # stages that read data


class PrepareStage(Node):
    """Make data files. Never written by hand: the graph adds one for each distinct `data.*.prepare`."""

    kind: Literal["prepare"]
    source: Target


UserStage = Annotated[
    TrainStage | MergeStage | AverageStage | SearchStage | ConvertStage | EvaluateStage, Field(discriminator="kind")
]
Stage = Annotated[
    TrainStage | MergeStage | AverageStage | SearchStage | ConvertStage | EvaluateStage | PrepareStage,
    Field(discriminator="kind"),
]


class HardwareConfig(Node):
    """Where a stage runs. Everything but `precision` only moves work about."""

    gpu: str  # a name in hardware/gpus.py; cpu is one of them
    nodes: Annotated[Positive, Volatile]
    ranks_per_node: Annotated[Positive, Volatile]
    precision: Precision
    attention: Annotated[Literal["eager", "sdpa", "flash_attention_2", "xformers"], Volatile]
    tensor_parallel: Annotated[Positive, Volatile]  # ranks that share every layer of the LLM
    sequence_parallel: Annotated[Positive, Volatile]  # ranks that share every sequence
    tf32: Annotated[bool, Volatile]  # TensorFloat-32 products on GPUs that have them
    env: Annotated[dict[str, str | int], Volatile]  # of the ranks; which names is up to checks/environment.py
    launcher: Annotated[Literal["inline", "torchrun", "deepspeed", "srun"], Volatile]
    hostfile: Annotated[str | None, Volatile]  # of several nodes: lines `HOST slots=N`
    threads: Annotated[Positive, Volatile]  # CPU threads per rank
    timeout_seconds: Annotated[Positive, Volatile]  # longest wait for another rank
    hang_seconds: Annotated[Positive | None, Volatile]  # without progress in a step: all ranks are ended; null: never
    max_restarts: Annotated[Count, Volatile]  # of a job whose rank died or hung, from its last checkpoint


Tracker = Literal["tensorboard", "wandb", "wandb_online"]


class RunConfig(Node):
    """One composed recipe."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Count
    output: str  # root of outputs/stages and outputs/runs
    only: list[str]  # run these stages only; their parents must be finished
    if_busy: Literal["wait", "fail"]  # when another process trains the same stage
    tracking: list[Tracker]  # wandb is offline; wandb_online uses the network
    objective: str | None  # STAGE.NUMBER that a sweeper looks for the best of; null: see docs/guides/sweeps.md
    model: ModelConfig
    data: dict[Name, DataConfig]
    stage: dict[Name, UserStage]
    hardware: HardwareConfig
