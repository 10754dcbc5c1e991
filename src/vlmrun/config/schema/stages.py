"""The other kinds of stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vlmrun.config.marks import Contents, Neutral, Parent, Source, Volatile
from vlmrun.config.schema.average import Method, Rule, Weights
from vlmrun.config.schema.base import Aspect, Few, Kept, Positive, Seed, Signed, Target
from vlmrun.config.schema.stage import StageNode
from vlmrun.config.schema.train import TrainStage

# The formats that are written, one module each in formats/.
Format = Literal[
    "native", "hf_llava", "hf", "llava", "kollava", "bunny", "denseconnector", "mm_projector", "peft", "delta",
    "bnb4", "bnb8", "megatron", "minicpm",
]  # fmt: skip


class MergeStage(StageNode):
    """Fold a LoRA stage's adapters into its LLM, slice by slice."""

    kind: Literal["merge"]
    init_from: Annotated[str, Parent]
    adapters: Annotated[list[str], Parent]  # further LoRA stages on the same base, whose changes are added
    weights: list[Signed] | None  # of init_from's adapter and of each further one; null: 1 each
    base: Literal["trained", "full"]  # of qlora: the weights quantized and back, or the full-precision ones
    arithmetic: Literal["fp32", "fp16"]  # fp16: weights, change and sum are each rounded, as the original scripts do
    dtype: Kept


class ConvertStage(StageNode):
    """Write a model as another format; whatever the source is, it is found out from its content."""

    kind: Literal["convert"]
    init_from: Annotated[str, Parent]  # a stage, an artifact, or the folder or file of a model in any format
    to: Format
    base_model: Annotated[str | None, Parent]  # the LLM or model that an adapter, a projector or a delta belongs to
    tower: Annotated[str | None, Contents]  # folder of the vision tower, when the source names one that is not here
    template: str | None  # when the source's format does not say; null: its family's usual one
    dtype: Kept
    tp: Literal[1, 2, 4, 8]  # megatron: tensor-parallel ranks
    skip: list[str]  # bnb4, bnb8: linear layers left as they are; empty: output head, tower, connector
    prove: Annotated[bool, Volatile]  # hf_llava: compare with plain transformers before it is kept


class EvaluateStage(StageNode):
    """Answer held-out questions and score them by exact match."""

    kind: Literal["evaluate"]
    init_from: Annotated[str, Parent]
    data: Annotated[list[str], Field(min_length=1), Source]
    template: str | None  # null: the one the model was trained with
    image_aspect: Aspect | None  # null: as the model was trained
    max_new_tokens: Positive
    batch: Annotated[Few, Volatile]
    max_samples: Positive | None
    shuffle_control: bool  # ask again with every question given another question's image
    blind_control: Annotated[bool, Neutral(False)]  # ask again without the images
    seed: Seed


class SearchStage(StageNode):
    """Try weights or parameters of an average, ask every model the questions, keep the best."""

    kind: Literal["search"]
    models: Annotated[list[str], Field(min_length=2), Parent]
    weights: list[Weights] | None  # a list of weights to try
    divisions: (
        Annotated[int, Field(ge=1, le=1000)] | None
    )  # in place of weights: all multiples of 1/divisions that sum to 1
    grid: dict[str, Annotated[list[Signed], Field(min_length=1)]]  # parameters of the method: values to try of each
    rules: list[Rule]  # as in average, the same at every point
    method: Method
    base_model: Annotated[str | None, Parent]
    dtype: Kept
    data: Annotated[list[str], Field(min_length=1), Source]
    template: str | None
    image_aspect: Aspect | None
    max_new_tokens: Positive
    batch: Annotated[Few, Volatile]
    max_samples: Positive | None
    score: str  # accuracy, accuracy_unseen, or the name of a benchmark among the data
    seed: Seed


Asking = EvaluateStage | SearchStage  # stages that put questions to a model
Reading = TrainStage | Asking  # stages that read data


class PrepareStage(StageNode):
    """Make data files. Never written by hand: the graph adds one for each distinct `data.*.prepare`."""

    kind: Literal["prepare"]
    source: Target
