"""The tune proof: what is meant to learn learns, what is meant to stay stays, or the run stops.

Before the first step a table says what is trainable. After the first update with a non-zero rate, every part meant to
learn must have got a gradient and have moved, and every frozen tensor must be bit-equal. Tensors are compared by
fingerprint, so no second copy of a model is held.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlmrun import logs
from vlmrun.config.schema import Tune
from vlmrun.errors import ConfigError, Problem, VlmrunError
from vlmrun.names import PARTS
from vlmrun.train import dist
from vlmrun.train.optim import part_of

log = logs.get(__name__)

_CHUNK = 2**22
_MASK = 2**64 - 1
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# What a gradient hook saw: nothing, zeros only, something.
_SILENT, _ZERO, _ALIVE = 0, 1, 2


@dataclass(frozen=True)
class PartCount:
    """One line of the table: parameters of a part, and how many of them are trainable."""

    part: str
    tuning: str
    n_parameters: int
    n_trainable: int


def size(parameter: nn.Parameter) -> int:
    """Number of elements, also when ZeRO-3 has taken them away or 4-bit packing has halved them."""
    packed = getattr(parameter, "quant_state", None)
    if packed is not None:
        return math.prod(packed.shape)
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def count(vlm: nn.Module, tune: Tune) -> list[PartCount]:
    """Parameters of each part."""
    found = []
    for part in PARTS:
        mine = [p for name, p in vlm.named_parameters() if part_of(name) == part]
        trainable = sum(size(p) for p in mine if p.requires_grad)
        found.append(PartCount(part, getattr(tune, part), sum(size(p) for p in mine), trainable))
    return found


def check(counts: list[PartCount]) -> None:
    """Refuses a part whose tuning and trainable parameters contradict each other.

    Raises:
        ConfigError: naming the parts, or when nothing at all is trainable.
    """
    problems = [
        Problem(f"the {row.part} is to be trained ({row.tuning}) but has no trainable parameters", f"tune.{row.part}")
        for row in counts
        if row.tuning != "freeze" and row.n_trainable == 0
    ]
    problems += [
        Problem(f"the {row.part} is frozen but has {row.n_trainable:,} trainable parameters", f"tune.{row.part}")
        for row in counts
        if row.tuning == "freeze" and row.n_trainable > 0
    ]
    if not any(row.n_trainable for row in counts):
        problems.append(
            Problem("every part is frozen: there is nothing to train", "tune", "set a part to full or lora")
        )
    if problems:
        raise ConfigError(problems)


def table(counts: list[PartCount]) -> str:
    """The table as text."""
    lines = [f"{'part':<10} {'tuning':<7} {'parameters':>14} {'trainable':>14}"]
    lines += [f"{row.part:<10} {row.tuning:<7} {row.n_parameters:>14,} {row.n_trainable:>14,}" for row in counts]
    total, trainable = sum(row.n_parameters for row in counts), sum(row.n_trainable for row in counts)
    lines.append(f"{'all':<10} {'':<7} {total:>14,} {trainable:>14,}")
    return "\n".join(lines)


def fingerprint(tensor: Tensor) -> tuple[int, int]:
    """Two sums over a tensor's bits, one of them weighted by position.

    Any change of a single element changes the first; a swap changes the second.
    """
    bits = tensor.detach().contiguous().view(-1).view(_INTEGERS[tensor.element_size()])
    plain = weighted = 0
    for start in range(0, bits.numel(), _CHUNK):
        chunk = bits[start : start + _CHUNK].to(torch.int64)
        places = torch.arange(start + 1, start + 1 + chunk.numel(), device=chunk.device)
        plain = (plain + int(chunk.sum())) & _MASK
        weighted = (weighted + int((chunk * places).sum())) & _MASK
    return plain, weighted


class Proof:
    """Watches the first update that can change anything.

    Args:
        finest: a parameter's most exact copy on this rank (fp32 master weights, a shard), or None when it holds none.
            It may be a collective; all ranks call it in the same order.
        watch: registers a function to be called with a parameter's gradients; None: autograd's own hook.
    """

    def __init__(
        self,
        vlm: nn.Module,
        finest: Callable[[nn.Parameter], Tensor | None],
        watch: Callable[[nn.Parameter, Callable[[Tensor], None]], Any] | None = None,
    ) -> None:
        watch = watch or nn.Parameter.register_hook
        self._excused = {"tower"} if getattr(vlm, "tower_no_grad", False) else set()
        self._named = list(vlm.named_parameters())
        self._finest = finest
        self._before = self._prints()
        self._seen = [_SILENT] * len(self._named)
        self._hooks = [
            watch(parameter, self._watch(index))
            for index, (_, parameter) in enumerate(self._named)
            if parameter.requires_grad
        ]
        self.open = True

    def conclude(self) -> None:
        """Compares with the state before the update; every rank calls it.

        Raises:
            VlmrunError: naming the parts that did not do what they were meant to.
        """
        self.open = False
        for hook in self._hooks:
            hook.remove()
        after = self._prints()
        changed = [before != now for before, now in zip(self._before, after, strict=True)]
        shared = torch.tensor([self._seen, changed], dtype=torch.int64)
        seen, moved = dist.all_reduce(dist.on_device(shared), maximum=True).tolist()
        problems = [problem for part in PARTS for problem in self._judge(part, seen, moved)]
        if problems:
            raise VlmrunError(problems)

    def _judge(self, part: str, seen: list[int], moved: list[int]) -> list[Problem]:
        mine = [i for i, (name, _) in enumerate(self._named) if part_of(name) == part]
        learning = [i for i in mine if self._named[i][1].requires_grad]
        strayed = [self._named[i][0] for i in mine if i not in set(learning) and moved[i]]
        problems = []
        if strayed:
            problems.append(
                Problem(
                    f"the {part} is frozen but changed in the first update: {_some(strayed)}", f"tune.{part}", _REPORT
                )
            )
        if not learning:
            return problems
        if part in self._excused:
            log.warning("compat.tower_no_grad: the %s is among what is trained, and gets no gradient", part)
            return problems
        if not any(seen[i] == _ALIVE for i in learning):
            problems.append(Problem(f"the {part} is to be trained but got no gradient", f"tune.{part}", _DEAD))
        elif not any(moved[i] for i in learning):
            problems.append(Problem(f"the {part} got a gradient but did not move", f"tune.{part}", _STUCK))
        silent = [self._named[i][0] for i in learning if seen[i] == _SILENT]
        log.debug("tune proof: %s: %d of %d tensors moved", part, sum(moved[i] for i in learning), len(learning))
        if silent and not problems:
            log.info("%s: %d trainable tensors get no gradient: %s", part, len(silent), _some(silent))
        return problems

    def _prints(self) -> list[tuple[int, int] | None]:
        tensors = (self._finest(parameter) for _, parameter in self._named)
        return [None if tensor is None else fingerprint(tensor) for tensor in tensors]

    def _watch(self, index: int) -> Callable[[Tensor], None]:
        def look(gradient: Tensor) -> None:
            alive = _ALIVE if bool(gradient.any()) else _ZERO
            self._seen[index] = max(self._seen[index], alive)

        return look


_REPORT = "this is a bug: please report it with the job.json"
_DEAD = "nothing of the loss depends on it; check that the data has images (for tower and connector) and the right tune"
_STUCK = "its learning rate is zero or too small for its precision: check stage.*.optim"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
