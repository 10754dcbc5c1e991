"""An exponential moving average of what is trained, in fp32, each rank holding its piece of every parameter.

It is kept beside the training and never changes it. A checkpoint has it as flat pieces with the place where each
begins, so that any number of ranks, and none at all, can read it back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlmrun.config.schema import TrainStage
from vlmrun.errors import CheckpointError
from vlmrun.train import dist
from vlmrun.train.engine.base import Engine

FOLDER = "ema"
_STARTS = "starts"


class Ema:
    """The average; it begins as the weights before the first update.

    Every method is called on all ranks.
    """

    def __init__(self, engine: Engine, stage: TrainStage) -> None:
        assert stage.ema is not None
        self._engine, self._asked = engine, stage.ema
        place = torch.device("cpu") if stage.offload != "none" else None
        self._held: dict[str, Tensor] = {}
        self._starts: dict[str, int] = {}
        for name, piece, start in engine.pieces():
            self._held[name] = piece.detach().to(place or piece.device, torch.float32, copy=True)
            self._starts[name] = start

    @torch.no_grad()
    def update(self, finished: int) -> None:
        """Moves a little towards the weights after a step that is due."""
        if finished % self._asked.every:
            return
        share = 1.0 - self._asked.decay
        for name, piece, _ in self._engine.pieces():
            held = self._held[name]
            held.lerp_(piece.detach().to(held.device, torch.float32), share)

    def save(self, folder: Path) -> None:
        """Writes this rank's pieces into a checkpoint."""
        if self._engine.replicated and not dist.is_main():
            return
        place = folder / FOLDER
        place.mkdir(exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self._held.items()}
        save_file(tensors, place / f"rank-{dist.rank()}.safetensors", metadata={_STARTS: json.dumps(self._starts)})

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote, on whatever number of ranks.

        Raises:
            CheckpointError: when part of it is missing.
        """
        for name, held in self._held.items():
            filled = _fill(held, self._starts[name], _pieces(folder, name))
            padding = self._starts[name] + held.numel() - self._engine.n_elements(name)
            if filled < held.numel() - max(0, padding):
                raise _incomplete(folder, name)

    def apply(self) -> None:
        """Makes the average the weights of the model."""
        self._engine.put(self._held)


def whole(folder: Path, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Whole averaged parameters of a checkpoint, by name, in fp32.

    Raises:
        CheckpointError: when part of it is missing.
    """
    found = {}
    for name, shape in shapes.items():
        flat = torch.empty(math.prod(shape))
        if _fill(flat, 0, _pieces(folder, name)) < flat.numel():
            raise _incomplete(folder, name)
        found[name] = flat.view(shape)
    return found


def _pieces(folder: Path, name: str) -> Iterator[tuple[int, Tensor]]:
    """Where each piece of a parameter begins, and the piece, in order."""
    found = []
    for file in sorted((folder / FOLDER).glob("rank-*.safetensors")):
        with safe_open(file, framework="pt") as reader:
            starts = json.loads(reader.metadata()[_STARTS])
            if name in starts:
                found.append((starts[name], reader.get_tensor(name)))
    yield from sorted(found, key=lambda one: one[0])


def _fill(target: Tensor, start: int, pieces: Iterator[tuple[int, Tensor]]) -> int:
    """Copies what of the pieces belongs to a target that begins at `start`; returns how much of it is filled."""
    filled = 0
    for begin, piece in pieces:
        first, last = max(start + filled, begin), min(start + target.numel(), begin + piece.numel())
        if first == start + filled < last:
            target[filled : last - start].copy_(piece[first - begin : last - begin])
            filled = last - start
    return filled


def _incomplete(folder: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"the average of {name} is not complete in this checkpoint", str(folder / FOLDER), "take another checkpoint"
    )
