"""From logits, or from hidden states and an output head, to the losses of supervised tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlmrun.ids import FP32_LOGITS_CPU, FP32_LOGITS_GPU, IGNORE

# fp16 holds no gradient below 6e-8, and a loss scale would come too late for one computed in the forward pass.
_FP16_SCALE = 256.0

_BLOCK = 2048  # rows of the head; larger ones are new memory to the allocator each time


def count(labels: Tensor) -> int:
    """Supervised tokens of a batch: the first position of a row is never predicted."""
    return int((labels[:, 1:] != IGNORE).sum())


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each supervised token, in fp32.

    Shape:
        logits [B,L,V], labels [B,L] -> [n_supervised]; row b, position t predicts labels[b, t+1].
    """
    targets = labels[:, 1:]
    kept = targets != IGNORE
    # Choosing rows first keeps the fp32 copy of the logits as small as the answers, not as large as the prompts.
    return torch.nn.functional.cross_entropy(logits[:, :-1][kept].float(), targets[kept], reduction="none")


def supervised(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states that predict a supervised token, and those tokens.

    Shape:
        hidden [B,L,H], labels [B,L] -> [N,H], [N]
    """
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE).flatten()
    places = (shifted != IGNORE).nonzero().squeeze(1)
    return hidden.flatten(0, 1).index_select(0, places), shifted[places]


@dataclass(frozen=True)
class Tail:
    """What an LLM does to its head's output: scales it, then bends it below a cap.

    Source: transformers' Granite divides, Cohere multiplies, Gemma 2 caps.
    """

    divide: float = 1.0
    times: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits as the LLM gives them, in the order and type of its own operations."""
        if self.divide != 1.0:
            logits = logits / self.divide
        if self.times != 1.0:
            logits = logits * self.times
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    @property
    def scale(self) -> float:
        """The factor before the cap."""
        return self.times / self.divide

    def slope(self, logits: Tensor) -> Tensor | float:
        """The derivative at the logits it gave."""
        return self.scale if self.cap is None else (1 - (logits / self.cap) ** 2) * self.scale


class ChunkedLoss(torch.autograd.Function):
    """Sum of the cross-entropies of hidden states through a linear head; logits exist for one chunk at a time.

    The gradients are computed in the forward pass, for a loss whose own gradient is 1, because then no chunk's logits
    are needed again; the backward pass multiplies them by the gradient it gets. A chunk's logits become their own
    gradient where they lie, a few rows at a time in fp32. The head's gradient is summed over chunks in fp32, or comes
    out of one product if all positions together take no more than that sum would. In fp16, where a small gradient is
    lost, that of the logits is fp32, that of the hidden states is computed scaled and kept in fp32, and that of the
    head is computed in fp32.

    Shape:
        hidden [N,H], weight [V,H], bias [V] or None, targets [N] -> []
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, how: Chunks) -> Tensor:
        wanted = [bool(how.gradients and needed) for needed in ctx.needs_input_grad[:3]]
        ctx.dtypes = [None if given is None else given.dtype for given in (hidden, weight, bias)]
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            total, gradients = _by_chunks(hidden, weight, bias, targets, how, wanted)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # In place: the head's gradient is as large as the head. A second backward pass is refused by autograd, which
        # sees that what was saved has changed.
        scaled = [
            None if saved is None else saved.mul_(grad).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None)


chunked_loss: Callable[..., Tensor] = ChunkedLoss.apply  # torch's own `apply` has no types


@dataclass(frozen=True)
class Chunks:
    """How `ChunkedLoss` computes.

    Args:
        size: positions whose logits exist at a time.
        gradients: whether a backward pass will follow.
        each: [N] in fp32, filled with the loss of every position; None: not asked for.
    """

    size: int
    tail: Tail
    gradients: bool
    each: Tensor | None = None


def _by_chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, how: Chunks, wanted: list[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """The sum, and the gradients of hidden states, weight and bias that are wanted."""
    half = hidden.dtype == torch.float16
    exact = torch.promote_types(weight.dtype, torch.float32)
    at_once = wanted[1] and _in_one_product(hidden)
    size = len(hidden) if at_once else how.size
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    grad_hidden = torch.empty_like(hidden, dtype=exact if half else hidden.dtype) if wanted[0] else None
    grad_weight = torch.zeros_like(weight, dtype=exact) if wanted[1] and not at_once else None
    grad_bias = torch.zeros_like(bias, dtype=exact) if bias is not None and wanted[2] else None
    for begin in range(0, len(hidden), size):
        part = slice(begin, begin + size)
        rows = hidden[part]
        each = torch.empty(len(rows), dtype=torch.float32, device=rows.device) if how.each is None else how.each[part]
        loss, grad = _chunk(torch.nn.functional.linear(rows, weight, bias), targets[part], how.tail, each)
        total += loss
        if grad_bias is not None:
            grad_bias += grad.sum(0, dtype=exact)
        if at_once:
            grad_weight = grad.t() @ rows
        elif grad_weight is not None:
            _add_product(grad_weight, grad, rows)
        if grad_hidden is not None:
            _set_product(grad_hidden[part], grad, weight)
        del grad  # or it would still be there while the next chunk's logits are made
    return total, [grad_hidden, grad_weight, grad_bias]


def _in_one_product(hidden: Tensor) -> bool:
    """Whether all gradients of logits, in 16 bits, take no more than the head's gradient in fp32 beside its own."""
    return hidden.dtype == torch.bfloat16 and 0 < len(hidden) <= 2 * hidden.shape[1]


def _add_product(total: Tensor, grad: Tensor, rows: Tensor) -> None:
    """Adds grad^T rows; where that means a copy in fp32, block by block, or it would be as large as the head."""
    if total.dtype == rows.dtype or grad.dtype == torch.float32:
        total.addmm_(grad.t(), rows.to(grad.dtype))
        return
    for block, of_block in zip(total.split(_BLOCK), grad.split(_BLOCK, dim=1), strict=True):
        block += of_block.t() @ rows


def _set_product(out: Tensor, grad: Tensor, weight: Tensor) -> None:
    """Writes grad @ weight; gradients in fp32 of a head in fp16 go through it scaled."""
    if grad.dtype == weight.dtype:
        torch.mm(grad, weight, out=out)
        return
    out.copy_(grad.mul_(_FP16_SCALE).to(weight.dtype) @ weight).div_(_FP16_SCALE)


def _chunk(product: Tensor, targets: Tensor, tail: Tail, each: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the losses in fp32, and the gradient of the head's output, in its place unless that is fp16.

    Args:
        each: filled with the losses.
    """
    grad = product if product.dtype != torch.float16 else torch.empty_like(product, dtype=torch.float32)
    loss = torch.zeros((), dtype=torch.float32, device=product.device)
    most = FP32_LOGITS_CPU if product.device.type == "cpu" else FP32_LOGITS_GPU
    n_rows = max(1, most // product.shape[1])
    parts = (whole.split(n_rows) for whole in (product, grad, targets, each))
    for given, wanted, of_rows, losses in zip(*parts, strict=True):
        found = _rows(given, of_rows.unsqueeze(1), tail, wanted)
        losses.copy_(found)
        loss += found.sum()
    return loss, grad


def _rows(product: Tensor, targets: Tensor, tail: Tail, grad: Tensor) -> Tensor:
    """The loss of each of a few rows; the gradient is written to `grad`, which may be `product`."""
    logits = tail(product).float()
    most, picked = logits.amax(1, keepdim=True), logits.gather(1, targets)
    found = torch.softmax(logits, 1)
    found /= found.sum(1, keepdim=True)  # on a CPU the kernel's own sum is ten times less exact
    # The largest probability is e^0 over the sum, so the sum is known to full precision without another pass.
    losses = (most - picked - found.amax(1, keepdim=True).log()).squeeze(1)
    found.scatter_add_(1, targets, -torch.ones_like(picked))
    grad.copy_(found if tail == Tail() else found.mul_(tail.slope(logits)))
    return losses
