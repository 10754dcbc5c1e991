"""Sizes of the three parts, and the counts of parameters that follow from them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from vlmrun import expressions
from vlmrun.arch.linears import Linear, n_adapters, places
from vlmrun.config.schema import Lora

_ROWS = ("o_proj", "dense", "out_proj", "down_proj", "fc2")  # layers behind attention and behind the MLP's activation


@dataclass(frozen=True)
class Llm:
    """An LLM of equal blocks between an embedding and a head.

    Attributes:
        linears: of one block.
        n_norms: of one block.
        fused: q, k and v come out of one product and stay views of it.
        dropout: after attention and MLP, of the residual stream.
        beside: parameters of a block besides its linear layers and norms, such as norms of queries and keys.
        varied: linear layers of every block, where blocks differ; `linears` are then those of the largest.
        experts: parameters of experts that one token goes through, in a block.
        extra: parameters that none of the other fields account for.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    intermediate: int
    linears: tuple[Linear, ...]
    norm: Literal["rms", "layer"] = "rms"
    n_norms: int = 2
    norm_bias: bool = False
    gated: bool = True
    activation: Literal["silu", "gelu", "gelu_new"] = "silu"
    fused: bool = False
    tied: bool = False
    head_bias: bool = False
    dropout: float = 0.0
    beside: int = 0
    varied: tuple[tuple[Linear, ...], ...] = ()
    experts: int = 0
    extra: int = 0

    @property
    def of_blocks(self) -> tuple[tuple[Linear, ...], ...]:
        """Linear layers of every block."""
        return self.varied or (self.linears,) * self.layers

    @property
    def n_block(self) -> int:
        """Parameters of one block."""
        norm = self.hidden * (1 + self.norm_bias)
        return sum(linear.n_parameters for linear in self.linears) + self.n_norms * norm + self.beside

    @property
    def n_embedding(self) -> int:
        """Parameters of the embedding alone; the head has as many again unless it is tied."""
        return self.vocab * self.hidden

    @property
    def n_parameters(self) -> int:
        """All of them, tied ones once."""
        ends = self.n_embedding * (1 if self.tied else 2) + self.head_bias * self.vocab
        return self.layers * self.n_block + ends + self.hidden * (1 + self.norm_bias) + self.extra

    def cut(self, size: int) -> Llm:
        """What each of `size` ranks has that share every layer: some heads, some of the MLP's width, the rest whole.

        Layers that take cut inputs keep their bias whole.   Source: train/engine/tensor_parallel.py
        """
        if size == 1:
            return self
        linears = tuple(
            linear._replace(n_in=linear.n_in // size)
            if linear.name in _ROWS
            else linear._replace(n_out=linear.n_out // size)
            for linear in self.linears
        )
        return replace(
            self,
            heads=self.heads // size,
            kv_heads=self.kv_heads // size,
            intermediate=self.intermediate // size,
            linears=linears,
        )

    def adapted(self, lora: Lora, block: Sequence[Linear] | None = None) -> list[Linear]:
        """The linear layers of a block that get an adapter."""
        linears = self.linears if block is None else block
        if lora.targets == "all-linear":
            return list(linears)
        if isinstance(lora.targets, str):  # an expression: tried on a layer's name in its usual places
            fits = partial(expressions.matches, lora.targets)
            return [linear for linear in linears if any(map(fits, places(linear.name)))]
        return [linear for linear in linears if linear.name in [t.split(".")[-1] for t in lora.targets]]

    def n_adapter(self, lora: Lora, last: int | None = None) -> int:
        """Parameters of the adapters: A and B, and with DoRA a length for each row.

        Args:
            last: only the last blocks have some; None: all.
        """
        return n_adapters([self.adapted(lora, block) for block in self.of_blocks], lora, "model.layers", last)

    def n_whole(self, lora: Lora) -> int:
        """Parameters of embedding and head that train whole beside the adapters."""
        n = sum(name in ("embed_tokens", "wte", "lm_head") for name in lora.modules_to_save) * self.n_embedding
        return n + ("lm_head" in lora.modules_to_save) * self.head_bias * self.vocab

    def n_bias(self, lora: Lora) -> int:
        """Biases that train beside the adapters."""
        if lora.bias == "none":
            return 0
        every = lora.bias == "all"
        chosen = [linear for block in self.of_blocks for linear in (block if every else self.adapted(lora, block))]
        inside = sum(linear.n_out for linear in chosen if linear.bias)
        if not every:
            return inside
        norms = self.hidden * self.norm_bias
        return inside + norms * (self.layers * self.n_norms + 1) + self.head_bias * self.vocab


@dataclass(frozen=True)
class Tower:
    """A vision transformer.

    Attributes:
        blocks: those that are run: up to the deepest layer asked for.
        tokens: of one square, class token included.
        patches: features of one square that are handed on.
        edge: pixels along the square.
        enlarged: how many times the square's edge an image has (S2: 3).
        squares: encoded for one image (S2: 1 + 4 + 9).
        scales: whose features lie side by side (S2: 3).
        kept: layers that are handed on.
        n_used: parameters that what is handed on depends on; the others are loaded, and never trained.
    """

    hidden: int
    blocks: int
    heads: int
    intermediate: int
    tokens: int
    patches: int
    edge: int
    enlarged: int
    squares: int
    kept: int
    activation: Literal["gelu", "quick_gelu"]
    n_parameters: int
    n_used: int
    scales: int = 1

    @property
    def width(self) -> int:
        """Channels of all layers and scales together."""
        return self.hidden * self.kept * self.scales

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Of one block, as CLIP and SigLIP name them."""
        names, hidden, wide = ("q_proj", "k_proj", "v_proj", "out_proj"), self.hidden, self.intermediate
        attention = tuple(Linear(name, hidden, hidden, bias=True) for name in names)
        return (*attention, Linear("fc1", hidden, wide, bias=True), Linear("fc2", wide, hidden, bias=True))

    def n_last(self, last: int | None) -> int:
        """Parameters that train when the tower does, or its last blocks."""
        return self.n_used if last is None else min(last, self.blocks) * vit_block(self.hidden, self.intermediate)

    def n_adapter(self, lora: Lora, last: int | None = None) -> int:
        """Parameters of adapters on the blocks that are run, or on the last of them."""
        every = isinstance(lora.targets, str)  # an expression: at most all of them
        adapted = [linear for linear in self.linears if every or linear.name in lora.targets]
        return n_adapters([adapted] * self.blocks, lora, "encoder.layers", last)


def vit_block(hidden: int, intermediate: int) -> int:
    """Parameters of a transformer block with biases everywhere."""
    return 4 * hidden * (hidden + 1) + 2 * hidden * intermediate + intermediate + hidden + 4 * hidden


@dataclass(frozen=True)
class Connector:
    """Linear layers, each with the rows it sees per image; and what is saved between them.

    Attributes:
        tokens: rows per square handed to the LLM.
        saved: elements per square that the backward pass needs.
        extra: parameters besides those of the linear layers.
    """

    linears: tuple[tuple[Linear, int], ...]
    tokens: int
    saved: int
    extra: int = 0

    @property
    def n_parameters(self) -> int:
        """All of them."""
        return sum(linear.n_parameters for linear, _ in self.linears) + self.extra


@dataclass(frozen=True)
class Shapes:
    """The three parts."""

    llm: Llm
    tower: Tower
    connector: Connector

    @property
    def n_parameters(self) -> int:
        """Of all parts, without adapters."""
        return self.llm.n_parameters + self.tower.n_parameters + self.connector.n_parameters


def stack(widths: Sequence[int], rows: int, *, bias: bool = True) -> tuple[tuple[tuple[Linear, int], ...], int]:
    """Linear layers with GELU between them: themselves with their rows, and the elements saved."""
    linears = tuple((Linear("", n_in, n_out, bias), rows) for n_in, n_out in itertools.pairwise(widths))
    inner = sum(widths[1:-1])
    return linears, rows * (widths[0] + 2 * inner)  # each GELU keeps its input, the next layer its output
