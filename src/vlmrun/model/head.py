"""The loss of an LLM without its logits: decoder, supervised positions, then output head and loss in chunks.

This leaves out the LLM's own last lines, between its decoder and its logits, so those are found out beforehand: both
modules are replaced by stand-ins for one call, and what comes out is compared with what the stand-ins gave
(`find_tail`). An LLM that does something else there, or whose head is no ordinary linear layer, has its full logits
computed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlmrun import logs
from vlmrun.model.loss import Chunks, Tail, chunked_loss, supervised, token_losses

log = logs.get(__name__)

Kind = Literal["chunked", "plain", "liger"]
# What a family unlike the known ones may do with stand-ins: any of these means that it is not understood.
_STRANGE = (AttributeError, TypeError, ValueError, KeyError, IndexError, RuntimeError, NotImplementedError)


class Head:
    """How the sum of the losses of supervised tokens comes from what an LLM is given.

    Args:
        llm: with its adapters, if it has any; its weights may be sharded already.
        kind: how it is asked for; `plain` where `chunked` or `liger` cannot be right.
        chunk: positions whose logits exist at a time, under `chunked`.
    """

    def __init__(self, llm: nn.Module, kind: Kind = "plain", chunk: int = 1) -> None:
        self.chunk = chunk
        self.listens = False  # whether `losses` is wanted
        self.losses: Tensor | None = None  # of every supervised token of the last batch, in fp32, one after another
        self.tail = None if kind == "plain" else find_tail(llm)
        self.kind: Kind = "plain" if self.tail is None else kind
        if self.kind != kind:
            log.info("this LLM's loss is computed from its full logits: its output head is not an ordinary one")

    def loss_sum(self, llm: nn.Module, labels: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The sum in fp32, in the graph also when nothing is supervised; and the logits, where they exist.

        Args:
            inputs: of the LLM: embeddings, mask, positions.
        """
        base: Any = causal_lm(llm)
        head: Any = None if self.tail is None else base.get_output_embeddings()
        if self.tail is None or not _is_plain_linear(head):  # an engine may have replaced it since
            logits = base(**inputs, use_cache=False).logits
            logits = logits.reshape(*labels.shape, -1)  # [B, L, V]; rows may have become one (`packed_rows.inputs`)
            losses = token_losses(logits, labels)  # [n_supervised]
            self.losses = losses.detach() if self.listens else None
            # Without a supervised token the sum is 0 but keeps its graph, so that every rank runs the same backward.
            return losses.sum() if losses.numel() else logits.sum().float() * 0.0, logits
        # [B, L, D] -> the supervised positions' [n_supervised, D] and [n_supervised]
        hidden, targets = supervised(base.get_decoder()(**inputs, use_cache=False)[0], labels)
        # As a call of the head, so that the engine that shards its weights gathers them for it.
        compute = _liger if self.kind == "liger" and len(targets) else self._chunked
        with _instead(head, functools.partial(compute, head, targets=targets, tail=self.tail)):
            return head(hidden), None

    def _chunked(self, head: nn.Linear, hidden: Tensor, targets: Tensor, tail: Tail) -> Tensor:
        size = (len(hidden),)
        self.losses = torch.empty(size, dtype=torch.float32, device=hidden.device) if self.listens else None
        how = Chunks(self.chunk, tail, torch.is_grad_enabled(), self.losses)
        total = chunked_loss(hidden, head.weight, head.bias, targets, how)
        return total


def _liger(head: nn.Linear, hidden: Tensor, targets: Tensor, tail: Tail) -> Tensor:
    """The same by Liger's kernel, on a GPU only. It knows no scale, so hidden states and bias are scaled for it.

    Source: liger-kernel 0.8.5, liger_kernel/transformers/functional.py. Never run here: there is no GPU.
    """
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    scale, dtype = tail.scale, hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    weight = head.weight.to(dtype)
    bias = None if head.bias is None else head.bias.to(dtype) * scale
    scaled = hidden.to(dtype) if scale == 1.0 else hidden.to(dtype) * scale
    total: Tensor = liger_fused_linear_cross_entropy(
        scaled, weight, targets, bias=bias, reduction="sum", softcap=tail.cap, accum_dtype=torch.float32
    )
    return total.float()


def causal_lm(llm: nn.Module) -> Any:
    """The LLM itself, without PEFT's wrapper: LoRA layers live inside it."""
    return llm.get_base_model() if hasattr(llm, "get_base_model") else llm  # type: ignore[operator]


def find_tail(llm: nn.Module) -> Tail | None:
    """What the LLM does between its decoder and its logits; None when that is not the head and a known `Tail`.

    Neither decoder nor head is run, so no weight is touched: they may be sharded.
    """
    try:
        base = causal_lm(llm)
        decoder, head = base.get_decoder(), base.get_output_embeddings()
        if decoder is base or not _is_plain_linear(head):
            return None
        return _probe(base, decoder, head)
    except _STRANGE as error:
        log.debug("the way from this LLM's decoder to its logits is not understood: %s", error)
        return None


def _is_plain_linear(head: Any) -> bool:
    return type(head) is nn.Linear


@torch.no_grad()
def _probe(base: Any, decoder: nn.Module, head: nn.Linear) -> Tail | None:
    """Calls the LLM with stand-ins for decoder and head, and compares what it makes of their outputs."""
    from transformers.modeling_outputs import MoeModelOutputWithPast

    class Decoded(MoeModelOutputWithPast):  # the type with most fields; those of a single family are None as well
        def __getattr__(self, name: str) -> None:
            if name.startswith("_"):
                raise AttributeError(name)

    where: dict[str, Any] = {"device": head.weight.device, "dtype": head.weight.dtype}
    random = torch.Generator().manual_seed(0)
    width = base.get_input_embeddings().embedding_dim
    embeds, hidden, product = (
        (torch.randn(1, 2, n, generator=random) * 30).to(**where) for n in (width, head.in_features, head.out_features)
    )
    seen: dict[str, Any] = {}

    def decode(*given: Any, **named: Any) -> Any:
        seen["embeds"] = named.get("inputs_embeds")
        return Decoded(last_hidden_state=hidden)

    def project(given: Tensor) -> Tensor:
        seen["hidden"] = given
        made: Tensor = product.clone()
        return made

    with _instead(decoder, decode), _instead(head, project):
        logits = base(inputs_embeds=embeds, use_cache=False).logits
    untouched = seen["embeds"] is embeds and torch.equal(seen["hidden"], hidden)
    # In fp32, where the loss is computed; whether the LLM raises its logits to that or not makes no difference.
    tails = _tails(base.config.get_text_config())
    same = (tail for tail in tails if torch.equal(tail(product).float(), logits.float()))
    return next(same, None) if untouched else None


def _tails(config: Any) -> Iterator[Tail]:
    """What a config's numbers may mean."""
    scales = {"divide": getattr(config, "logits_scaling", None), "times": getattr(config, "logit_scale", None)}
    yield Tail()
    yield Tail(**{name: float(value) for name, value in scales.items() if isinstance(value, int | float)})
    if cap := getattr(config, "final_logit_softcapping", None):
        yield Tail(cap=float(cap))


@contextlib.contextmanager
def _instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Lets a module compute something else for a while; its hooks run as always."""
    kept = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if kept is None:
            del module.forward
        else:
            module.forward = kept
