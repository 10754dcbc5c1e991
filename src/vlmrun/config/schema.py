"""The typed shape of a composed run. No defaults live here: every value stands in `conf/`, so `--cfg job` shows it.

A field marked `Volatile` moves work about without changing the result (how a batch is cut, how often to save); it is
left out of a stage's key, so changing it reuses or continues what exists (see `run/identity.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _VolatileMark:
    """Marker in a field's metadata: not part of a stage's identity."""


Volatile = _VolatileMark()

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0.0)]
# Names become parts of folder names.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")]

Precision = Literal["fp32", "bf16"]
Tuning = Literal["freeze", "full", "lora", "qlora"]


class Node(BaseModel):
    """Base of every configuration node: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", populate_by_name=True)


class Target(Node):
    """A part built by `build.py`: `_target_` names a class or function, every other key is one of its arguments."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", populate_by_name=True)

    target: str = Field(alias="_target_")

    @property
    def arguments(self) -> dict[str, Any]:
        """All keys but `_target_`."""
        return dict(self.model_extra or {})


class ModelConfig(Node):
    """The three parts and how text is laid out between them."""

    llm: Target
    tower: Target
    connector: Target
    template: str  # how turns become text, unless a stage says otherwise
    max_length: Positive  # tokens a sample may have, image tokens included


class DataConfig(Node):
    """One source of samples. Paths are relative to the prepared folder when `prepare` is set."""

    format: str
    annotations: str
    images: str | None  # folder that every image path must stay inside
    on_error: Literal["fail", "skip"]  # skip: counted and listed in skipped.jsonl
    prepare: Target | None  # makes the files, as a job of its own with an artifact of its own


class Tune(Node):
    """What happens to each part: left alone, trained whole, or trained through LoRA adapters.

    `qlora` is `lora` on an LLM whose frozen weights are held in 4 bits.
    """

    llm: Tuning
    tower: Literal["freeze", "full"]
    connector: Literal["freeze", "full"]

    @property
    def adapters(self) -> bool:
        """Whether the LLM is trained through adapters."""
        return self.llm in ("lora", "qlora")

    @property
    def quantized(self) -> Literal["nf4"] | None:
        """How the LLM's frozen weights are held; None: as they are."""
        return "nf4" if self.llm == "qlora" else None


class Lora(Node):
    """Adapter shape. `targets`: last names of the LLM's linear layers, or `all-linear` (all but the output head)."""

    r: Positive
    alpha: Annotated[float, Field(gt=0)]
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)]
    targets: Literal["all-linear"] | list[str]


class Optim(Node):
    """AdamW and its schedule. Part rates default to `lr` when null."""

    lr: Rate
    connector_lr: Rate | None
    tower_lr: Rate | None
    weight_decay: Rate
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    eps: Annotated[float, Field(gt=0)]
    schedule: Literal["cosine", "linear", "constant"]
    warmup_ratio: Fraction  # share of the steps; the first update has rate 0, as in transformers
    max_grad_norm: Rate  # 0 = no clipping


class TrainStage(Node):
    """Train some parts on some data."""

    kind: Literal["train"]
    init_from: str | None  # a stage, an artifact folder, or null: the parts as `model` names them
    data: Annotated[list[str], Field(min_length=1)]
    template: str | None
    image_aspect: Literal["square", "pad"]
    tune: Tune
    lora: Lora | None
    optim: Optim
    loss: Literal["token_mean", "micro_mean"]
    epochs: Annotated[float, Field(gt=0)]
    max_steps: Positive | None
    global_batch: Positive
    micro_batch: Annotated[Positive, Volatile]  # samples per forward and rank; in the key only under micro_mean
    zero: Annotated[Literal[0, 1, 2, 3], Volatile]
    engine: Annotated[Literal["deepspeed", "plain"], Volatile]
    gradient_checkpointing: Annotated[bool, Volatile]
    save_steps: Annotated[Positive, Volatile]
    save_total_limit: Annotated[Positive, Volatile]
    log_steps: Annotated[Positive, Volatile]
    workers: Annotated[Count, Volatile]  # loader processes per rank
    seed: Count


class MergeStage(Node):
    """Fold a LoRA stage's adapters into its LLM, shard by shard."""

    kind: Literal["merge"]
    init_from: str
    dtype: Literal["keep", "fp32", "bf16", "fp16"]


class AverageStage(Node):
    """Weighted mean of finished models with equal tensors."""

    kind: Literal["average"]
    models: Annotated[list[str], Field(min_length=2)]
    weights: Annotated[list[float], Field(min_length=2)]
    dtype: Literal["keep", "fp32", "bf16", "fp16"]


class EvaluateStage(Node):
    """Answer held-out questions and score them by exact match."""

    kind: Literal["evaluate"]
    init_from: str
    data: Annotated[list[str], Field(min_length=1)]
    template: str | None  # null: the one the model was trained with
    image_aspect: Literal["square", "pad"] | None  # null: as the model was trained
    max_new_tokens: Positive
    batch: Annotated[Positive, Volatile]
    max_samples: Positive | None
    shuffle_control: bool  # ask again with every question given another question's picture
    seed: Count


class PrepareStage(Node):
    """Make data files. Never written by hand: the graph adds one for each distinct `data.*.prepare`."""

    kind: Literal["prepare"]
    source: Target


UserStage = Annotated[TrainStage | MergeStage | AverageStage | EvaluateStage, Field(discriminator="kind")]
Stage = Annotated[TrainStage | MergeStage | AverageStage | EvaluateStage | PrepareStage, Field(discriminator="kind")]


class HardwareConfig(Node):
    """Where a stage runs. Everything but `precision` only moves work about."""

    gpu: str  # a name in hardware/gpus.py; cpu is one of them
    nodes: Annotated[Positive, Volatile]
    ranks_per_node: Annotated[Positive, Volatile]
    precision: Precision
    attention: Annotated[Literal["eager", "sdpa", "flash_attention_2"], Volatile]
    launcher: Annotated[Literal["inline", "torchrun", "deepspeed"], Volatile]
    threads: Annotated[Positive, Volatile]  # CPU threads per rank
    timeout_seconds: Annotated[Positive, Volatile]  # longest wait for another rank


Tracker = Literal["tensorboard", "wandb", "wandb_online"]


class RunConfig(Node):
    """One composed recipe."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Count
    output: str  # root of outputs/stages and outputs/runs
    only: list[str]  # run these stages only; their parents must be finished
    if_busy: Literal["wait", "fail"]  # when another process trains the same stage
    tracking: list[Tracker]  # wandb is offline; wandb_online uses the network
    model: ModelConfig
    data: dict[Name, DataConfig]
    stage: dict[Name, UserStage]
    hardware: HardwareConfig
