"""Sequence parallelism: several ranks share every sequence, each holding a piece of it.

Everything but attention looks at one position at a time and runs on the piece. For attention the ranks exchange
pieces of the sequence against attention heads, so that each computes some heads over the whole sequence, and exchange
back. Images are spliced in before: every rank runs tower, connector and embedding over the whole batch, then cuts.

Source: DeepSpeed Ulysses, arXiv:2309.14509. DeepSpeed's own integration replaces sdpa in the whole process,
so the tower's too, and leaves gradients `size` times too large below ZeRO-3; this one is the LLM's alone, and no engine
knows of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from vlmrun.errors import ConfigError
from vlmrun.ids import IGNORE

NAME = "vlmrun_ulysses"


class Ulysses:
    """How one group of ranks shares its sequences.

    A piece overlaps the next by one position: the label that a piece's last position predicts stands there. Attention
    leaves the overlap out.

    Args:
        llm: its attention is replaced; it must go through transformers' attention interface.
        group: the ranks that read the same samples.

    Raises:
        ConfigError: when the LLM's attention cannot be replaced.
    """

    def __init__(self, llm: Any, group: Any) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        self._group = group
        self._size = torch.distributed.get_world_size(group)
        self._rank = torch.distributed.get_rank(group)
        self._inner = ALL_ATTENTION_FUNCTIONS["sdpa"]
        ALL_ATTENTION_FUNCTIONS.register(NAME, self._attend)
        if not llm._supports_sdpa:
            raise ConfigError(
                f"the attention of {type(llm).__name__} cannot be shared",
                "hardware.sequence_parallel",
                "hardware.sequence_parallel=1",
            )
        self._configs = {id(m.config): m.config for m in llm.modules() if hasattr(m, "config")}.values()
        self._kept = llm.config._attn_implementation
        self._use(NAME)
        self._attended = False

    def cut(self, inputs: dict[str, Any], labels: Tensor) -> tuple[dict[str, Any], Tensor]:
        """This rank's piece of what the LLM is given, and of the labels.

        Right-padding needs no mask under causal attention: what is real never looks at it.

        Shape:
            inputs_embeds [B, L, D], labels [B, L] -> [B, P + 1, D], [B, P + 1] with P = ceil(L / size)
        """
        assert inputs.get("position_ids") is None, "rows of several samples are refused by the checks"
        length = labels.shape[1]
        piece = -(-length // self._size)
        missing = self._size * piece + 1 - length
        embeds = nn.functional.pad(inputs["inputs_embeds"], (0, 0, 0, missing))
        labels = nn.functional.pad(labels, (0, missing), value=IGNORE)
        mine = slice(self._rank * piece, (self._rank + 1) * piece + 1)
        positions = torch.arange(mine.start, mine.stop, device=labels.device).expand(labels.shape[0], -1)
        self._attended = False
        return {"inputs_embeds": embeds[:, mine], "attention_mask": None, "position_ids": positions}, labels[:, mine]

    def total(self, loss_sum: Tensor) -> Tensor:
        """The sum over all pieces, on every rank of the group.

        Backward it is `size` times the gradient of the piece: engines average over all ranks, as if each had samples
        of its own.
        """
        assert self._attended, "the LLM's attention did not go through transformers' interface"
        whole: Tensor = _total(loss_sum, self._group, self._size)
        return whole

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Within, the LLM attends as it did before: to a whole sequence on this rank."""
        self._use(self._kept)
        try:
            yield
        finally:
            self._use(NAME)

    def _use(self, name: str) -> None:
        for config in self._configs:
            config._attn_implementation = name

    def _attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """What transformers calls: [B, heads, P + 1, D] of three kinds -> [B, P + 1, heads, D]."""
        assert attention_mask is None
        self._attended = True
        query, key, value = (self._to_heads(given) for given in (query, key, value))
        output, _ = self._inner(module, query, key, value, None, **options)
        return self._to_positions(output), None

    def _to_heads(self, given: Tensor) -> Tensor:
        """[B, H, P + 1, D] of a piece -> [B, H / size, size * P, D] of the whole sequence."""
        batch, heads, length, width = given.shape
        parts = given[:, :, :-1].reshape(batch, self._size, heads // self._size, length - 1, width)
        gathered = _exchange(parts.transpose(0, 1), self._group)
        return gathered.permute(1, 2, 0, 3, 4).reshape(batch, heads // self._size, -1, width)

    def _to_positions(self, given: Tensor) -> Tensor:
        """[B, size * P, H / size, D] of the whole sequence -> [B, P + 1, H, D] of a piece, zeros in the overlap."""
        batch, length, heads, width = given.shape
        parts = given.reshape(batch, self._size, length // self._size, heads, width)
        gathered = _exchange(parts.transpose(0, 1), self._group)
        piece = gathered.permute(1, 2, 0, 3, 4).reshape(batch, length // self._size, -1, width)
        return nn.functional.pad(piece, (0, 0, 0, 0, 0, 1))


class _Exchange(torch.autograd.Function):
    """Sends part i of the first dimension to rank i; its own inverse, and so its own gradient."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _exchanged(parts, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _exchanged(gradients[0], ctx.group), None


def _exchanged(parts: Tensor, group: Any) -> Tensor:
    parts = parts.contiguous()  # empty_like would keep the strides of one that is not
    received = torch.empty_like(parts)
    torch.distributed.all_to_all_single(received, parts, group=group)
    return received


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, piece: Tensor, group: Any, size: int) -> Tensor:
        ctx.size = size
        whole = piece.detach().clone()
        torch.distributed.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0] * ctx.size, None, None


# torch's own `apply` has no types.
_exchange: Callable[[Tensor, Any], Tensor] = _Exchange.apply
_total: Callable[[Tensor, Any, int], Tensor] = _Total.apply
