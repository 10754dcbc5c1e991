"""What the loop sees of a model under training, whichever engine computes."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmrun.train import dist
from vlmrun.train.optim import Group


class Engine(ABC):
    """A model under training.

    One update is: `forward` and `backward` for each micro batch, then `step`. All are collectives: every rank makes the
    same calls in the same order.
    """

    def __init__(self, vlm: nn.Module, groups: list[Group]) -> None:
        self.vlm = vlm
        self.groups = groups

    @property
    @abstractmethod
    def name(self) -> str:
        """What a checkpoint and the summary call it; checkpoints of one name fit each other."""

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Sum of the losses of all supervised tokens of a collated micro batch, in fp32."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of loss / accumulation, to be averaged over ranks."""

    @abstractmethod
    def step(self, factor: float, weight_decay: float | None = None) -> float | None:
        """Updates with every group's rate times `factor`; returns the gradient norm before clipping.

        Args:
            weight_decay: of the groups that decay; None: as they were made.

        None: the gradients did not fit into fp16, and nothing was updated; the next ones are scaled less.
        """

    def loss_scale(self) -> float | None:
        """fp16: the factor that the next loss is multiplied by; None where losses are taken as they are."""
        return None

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes trained weights and optimizer state below a folder that exists."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Reads what `save` wrote."""

    def gather(self, part: str, *, trainable: bool = False) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor on the CPU) of a part's parameters, all or the trainable ones, one whole tensor at a time.

        A collective: ranks other than 0 must exhaust it too, and get empty tensors. Tied weights come once.
        """
        for name, parameter in self.vlm.get_submodule(part).named_parameters():
            if parameter.requires_grad or not trainable:
                yield name, self._whole(parameter)

    def finest(self, parameter: nn.Parameter) -> Tensor | None:
        """The most exact copy of a parameter, or of the piece of it, that this rank holds."""
        return parameter.detach()

    replicated = False  # whether all ranks hold the same pieces

    def pieces(self) -> Iterator[tuple[str, Tensor, int]]:
        """This rank's piece of every trained parameter's most exact copy, flat, and the element it begins with.

        A rank that holds nothing of a parameter skips it; the last piece may be padded.
        """
        for name, parameter in self.vlm.named_parameters():
            if parameter.requires_grad:
                yield name, parameter.detach().view(-1), 0

    @torch.no_grad()
    def put(self, pieces: Mapping[str, Tensor]) -> None:
        """Makes other values of all `pieces` the weights that are computed with. A collective."""
        for name, piece, _ in self.pieces():
            piece.copy_(pieces[name])

    def n_elements(self, name: str) -> int:
        """Elements of a whole parameter."""
        parameter: Any = self.vlm.get_parameter(name)
        return int(getattr(parameter, "ds_numel", parameter.numel()))

    def readable(self) -> contextlib.AbstractContextManager[None]:
        """Within, parts of the model may be called one by one, as generation does. A collective."""
        return contextlib.nullcontext()

    def watch(self, parameter: nn.Parameter, look: Callable[[Tensor], None]) -> Any:
        """Calls `look` with every gradient of a trained parameter, or with this rank's piece of it.

        Returns:
            A handle with `remove()`.
        """
        return parameter.register_hook(look)

    @property
    @abstractmethod
    def described(self) -> list[dict[str, Any]]:
        """The optimizer's groups, in the order of `groups`; what stands in them is what it computes with."""

    def rates(self) -> dict[str, float]:
        """Learning rate of every part that trains, as the optimizer has it."""
        return {group.part: float(values["lr"]) for values, group in zip(self.described, self.groups, strict=True)}

    def _pace(self, factor: float, weight_decay: float | None) -> None:
        """Sets the rate, and a weight decay that changes, of the optimizer's groups."""
        for values, group in zip(self.described, self.groups, strict=True):
            values["lr"] = group.lr * factor
            if weight_decay is not None and group.decays:
                values["weight_decay"] = weight_decay

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().cpu().clone() if dist.is_main() else torch.empty(0)

    def _inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        place = next(self.vlm.parameters()).device
        names = ("input_ids", "attention_mask", "pixels", "labels", "position_ids")
        tensors = {name: batch[name].to(place, non_blocking=True) for name in names if name in batch}
        return tensors | {"layouts": batch.get("layouts")}
