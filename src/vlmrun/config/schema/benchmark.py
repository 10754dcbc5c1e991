"""Benchmarks: data sets with how they are asked and scored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic_core import PydanticKnownError

from vlmrun.config.marks import Volatile
from vlmrun.config.schema.base import Few, Node, Positive, Rate
from vlmrun.config.schema.data import DataConfig

# One each in eval/metrics.
MetricName = Literal[
    "exact", "vqa", "gqa", "scienceqa", "pope", "mme", "letter", "mmbench", "mmmu", "cmmmu", "anls", "relaxed",
    "contains",
]  # fmt: skip


def _named(metric: str) -> str:
    if "." in metric or metric in get_args(MetricName):
        return metric
    raise PydanticKnownError("literal_error", {"expected": ", ".join(map(repr, get_args(MetricName)))})


class Keys(Node):
    """What the columns of a question file are called; null: there is none, and questions are numbered from 0."""

    id: str | None
    text: str
    image: str | None
    answer: str | None
    category: str | None


class Generation(Node):
    """How answers are generated. Greedy answers are a function of the model alone; drawn ones also of the seed."""

    max_new_tokens: Positive
    temperature: Rate  # 0: always the likeliest token
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None  # of the likeliest tokens with this share together
    num_beams: Few
    stop: list[str]  # strings that end an answer, besides those of the template
    answers: Few  # of every question, each drawn again; all are scored
    second: str | None  # a second pass: put behind prompt and first answer, and continued
    second_tokens: Positive  # of the second pass, at most
    likelihood: bool  # the likeliest of the options' letters, in place of generated text


class BenchmarkConfig(DataConfig):
    """A set of questions with how it is asked and how its answers are scored."""

    format: Literal["jsonl", "json", "tsv"]  # of the question file
    keys: Keys
    gold: str | None  # file or folder of expected answers; null: the question file has them
    join: Literal["id", "pope", "mme", "textvqa"]  # how gold is found for a question
    prompt: Literal["text", "choices", "mmbench", "rounds", "science", "mmmu", "cmmmu"]  # how a row becomes a question
    tail: str  # behind the question
    generation: Generation
    # A name, or the dotted path of a module with a `METRIC`; null: scored elsewhere, by its server or by a judge.
    metric: Annotated[str, AfterValidator(_named)] | None
    submission: Literal["vqav2", "vizwiz", "gqa", "mm_vet", "seed", "mmbench", "docvqa", "mme"] | None
    blind_control: bool  # ask again without the images, also where the stage does not
    published: Annotated[dict[str, float], Volatile]  # recipe -> its published number, shown beside ours
    published_of: Annotated[str | None, Volatile]  # the number of ours that they compare with; null: the score
    note: Annotated[str | None, Volatile]  # shown beside a score


def _kind_of_data(value: Any) -> str:
    keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", {})
    return "benchmark" if "metric" in keys else "data"


Data = Annotated[
    Annotated[DataConfig, Tag("data")] | Annotated[BenchmarkConfig, Tag("benchmark")], Discriminator(_kind_of_data)
]
