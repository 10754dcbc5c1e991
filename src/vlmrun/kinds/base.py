"""The front of a stage kind: everything about it that is known without torch."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from vlmrun.arch.sizes import Shapes
from vlmrun.config import derived
from vlmrun.config.schema import HardwareConfig, StageNode
from vlmrun.errors import Problem
from vlmrun.kinds.needs import Needs

S = TypeVar("S", bound=StageNode)


@dataclass(frozen=True)
class Number:
    """A number of a finished stage's summary that tables show.

    Attributes:
        key: its name in the summary.
        title: its column's heading.
    """

    key: str
    title: str
    style: Literal["count", "loss", "share"]


class Kind(Generic[S]):
    """One kind of stage. A plugin's module makes one of a subclass and calls it `KIND`.

    Attributes:
        stage: its node of the configuration; marks in it name parents and data (`config/marks.py`).
        version: raised when the code makes something else from the same configuration; part of every key.
        back: the module that carries it out, `execute(job) -> Result | None`, imported by workers only.
        shares: whether all ranks of all nodes share its work; else it is one process of the first node.
        trains: whether it is watched meanwhile, and leaves a loss curve and checkpoints.
        makes_model: whether further stages can start from what it makes.
        answers: whether it leaves answers to questions, which reports show.
        objective: the number of its summary that a sweep judges it by.
        numbers: those of its summary that tables show, a column each.
    """

    stage: ClassVar[type[StageNode]] = StageNode
    version: ClassVar[int] = 1
    back: ClassVar[str] = ""
    shares: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    makes_model: ClassVar[bool] = True
    answers: ClassVar[bool] = False
    objective: ClassVar[str | None] = None
    numbers: ClassVar[tuple[Number, ...]] = ()

    @property
    def name(self) -> str:
        """What a configuration calls it."""
        return str(typing.get_args(self.stage.model_fields["kind"].annotation)[0])

    def describe(self, stage: S) -> str:
        """A stage in a few words."""
        return " ".join([stage.kind, *derived.parent_names(stage)])

    def reads(self, place: Path) -> bool:
        """Whether a parent may be this folder or file, which is no artifact of ours."""
        return False

    def check(self, stage: S, where: str) -> Iterator[Problem]:
        """What is wrong with the values of a stage; rules of vlmrun's own kinds are in `checks/`."""
        yield from ()

    def needs(self, stage: S, shapes: Shapes, hardware: HardwareConfig, length: int) -> Needs:
        """Memory and disk of a stage that does not train.

        Args:
            length: tokens of the longest sample.
        """
        return Needs()


AnyKind = Kind[Any]
