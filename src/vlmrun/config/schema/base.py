"""What every configuration node stands on: the base classes, numbers and names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vlmrun.config.marks import Neutral

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0.0)]
# Names become parts of folder names.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")]
Aspect = Literal["square", "pad", "pad_after", "anyres", "slices"]  # how an image is fitted to the tower's input
Color = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]
Precision = Literal["fp32", "bf16", "fp16"]
Kept = Literal["keep", "fp32", "bf16", "fp16"]  # the type of written weights; keep: each tensor's own


class Node(BaseModel):
    """Base of every configuration node: frozen, strict, no unknown keys."""

    # `defer_build`: one validator for a whole run when it is first needed, instead of one for each class at import.
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", populate_by_name=True, defer_build=True)

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
