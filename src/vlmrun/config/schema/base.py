"""What every configuration node stands on: the base classes, numbers and names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from vlmrun.config.marks import Neutral

# Numbers are finite (`Node`), and each has a range in which it can be meant: what is beyond would end a training
# run as an overflow, or never end.
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Few = Annotated[int, Field(ge=1, le=4096)]  # processes, threads, ranks, beams: things that each take memory
Size = Annotated[int, Field(ge=1, le=2**53)]  # numbers of elements or bytes
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[int, Field(ge=1, le=100_000_000)]  # three years
Rate = Annotated[float, Field(ge=0.0, le=1e6)]
Factor = Annotated[float, Field(gt=0.0, le=1e6)]
Signed = Annotated[float, Field(ge=-1e6, le=1e6)]


_MOST_UPDATES = 1_000_000_000


def _every(value: Any) -> Any:
    """A count of updates, a share of all of them, or the word epoch."""
    whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_UPDATES
    if value == "epoch" or whole or (isinstance(value, float) and 0.0 < value < 1.0):
        return value
    what, fix = f"every {value!r} is no interval", "a number of updates (500), a share of all updates (0.25), or epoch"
    raise PydanticCustomError("unknown_choice", "", {"what": what, "fix": fix})


Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Every = Annotated[Annotated[int, Field(ge=1, le=_MOST_UPDATES)] | Share | Literal["epoch"], BeforeValidator(_every)]
# Names become parts of folder names.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")]
Aspect = Literal["square", "pad", "pad_after", "anyres", "slices"]  # how an image is fitted to the tower's input
Color = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]
Precision = Literal["fp32", "bf16", "fp16"]
_LARGEST = 2**63 - 1  # of a number among arguments, either way
Kept = Literal["keep", "fp32", "bf16", "fp16"]  # the type of written weights; keep: each tensor's own


class Node(BaseModel):
    """Base of every configuration node: frozen, strict, no unknown keys, no number that is not finite."""

    # `defer_build`: one validator for a whole run when it is first needed, instead of one for each class at import.
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", populate_by_name=True, allow_inf_nan=False, defer_build=True
    )

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

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", populate_by_name=True, allow_inf_nan=False)

    target: str = Field(alias="_target_")

    @model_validator(mode="after")
    def _of_sane_numbers(self) -> Target:
        """Arguments have no types here, but their numbers have the same bounds as everywhere."""
        for name, value in _numbers(self.model_extra, "") if self.model_extra else ():
            if not abs(value) <= _LARGEST:
                what = "{name} = {value}: not a finite number, or one beyond every use"
                raise PydanticCustomError("out_of_range", what, {"name": name, "value": str(value)[:20]})
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """All keys but `_target_`."""
        return dict(self.model_extra or {})


def _numbers(value: Any, name: str) -> Iterator[tuple[str, int | float]]:
    """Every number in nested values, with its key."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, name)
    elif isinstance(value, int | float):
        yield name, value
