"""The door to weights in any format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmrun.config.schema import Kept
from vlmrun.errors import Problem

if TYPE_CHECKING:
    from vlmrun.formats.base import How

Progress = Callable[[int, int, str], None]  # tensors done, tensors in all, the name of the last one


@dataclass(frozen=True)
class Conversion:
    """What a conversion of weights needs besides its two folders.

    Attributes:
        base: the LLM or the model that an adapter, a projector or a delta belongs to.
        tower: the vision tower, when the source names one that is not here.
        template: built-in template, for formats that do not say which.
        dtype: of all tensors.
        tp: tensor-parallel ranks of a Megatron folder.
        skip: names of linear layers that are not quantized.
        fits: what an adapter is written for; None: the first that the model can be.
        adapter: whether a model's adapter is read.
    """

    base: Path | None = None
    tower: Path | None = None
    template: str | None = None
    dtype: Kept = "keep"
    tp: int = 1
    skip: tuple[str, ...] = ()
    fits: str | None = None
    adapter: bool = True


def convert(  # noqa: PLR0913 -- two folders, two formats, and what else was given
    source: Path,
    destination: Path,
    to: str,
    options: Conversion,
    *,
    came_as: str | None = None,
    prove: bool = True,
    report: Progress = lambda done, total, name: None,
) -> dict[str, Any]:
    """Writes a model in another format; `formats.convert.convert` gives the keys of what is returned.

    Raises:
        CheckpointError: when the source is damaged, the format cannot express it, or the proof fails.
    """
    from vlmrun.formats.convert import convert

    how = _how(options)
    return convert(source, destination, to, how, came_as=came_as, prove=prove, report=report)


def compare(
    first: Path, second: Path, options: Conversion, came_as: tuple[str | None, str | None] = (None, None)
) -> list[Problem]:
    """Every difference between the tensors of two models, in whatever formats they are."""
    from vlmrun.formats.convert import compare

    return compare(first, second, _how(options), came_as)


def training_args(path: Path) -> dict[str, Any]:
    """The values in a training_args.bin; no class that it names is imported.

    Raises:
        CheckpointError: when it is no such file.
    """
    from vlmrun.formats.training_args import read

    return read(path)


def know_checkpoints() -> None:
    """Makes training checkpoints a format that models are read from: the trainer's, which `formats` cannot import."""
    from vlmrun.formats import registry
    from vlmrun.train.export import format

    registry.register("training", format, asked=True)


def _how(options: Conversion) -> How:
    from vlmrun.formats.base import How
    from vlmrun.weights.reader import DTYPES

    know_checkpoints()
    dtype = DTYPES.get(options.dtype)  # None: keep
    return How(
        base=options.base,
        tower=options.tower,
        template=options.template,
        dtype=dtype,
        tp=options.tp,
        skip=options.skip,
        fits=options.fits,
        adapter=options.adapter,
    )
