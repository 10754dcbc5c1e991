"""Bytes that autograd keeps from the forward to the backward pass, counted operation by operation.

Every formula is of a micro batch on one rank. `s` is the size of an activation (2 in bf16 and fp16, else 4), `rows` are
tokens, padding included. What is counted: inputs of linear layers whose weight learns; inputs and outputs of activation
functions; q, k, v, the result and the log-sums of fused attention (its probabilities too where attention is eager); a
norm's input, which RMSNorm keeps in fp32; dropout's masks; an adapter's own inputs. docs/guides/plan.md lists them.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlmrun.arch.sizes import Connector, Llm, Tower
from vlmrun.config.schema import Lora

FP32 = 4


@dataclass(frozen=True)
class Batch:
    """A micro batch.

    Attributes:
        sequences, length: rows and columns of `input_ids`, padding included.
        supervised: tokens of the micro batch that have a loss.
        squares: images, or tiles of images, that the tower gets.
        padded: whether rows differ in length, or hold several samples, so that attention has a mask.
    """

    sequences: int
    length: int
    supervised: int
    squares: int
    padded: bool = True

    @property
    def rows(self) -> int:
        """Tokens."""
        return self.sequences * self.length

    def piece(self, ranks: int) -> Batch:
        """What the LLM of one of `ranks` gets that share every sequence: a piece and one position more, never a mask.

        Source: model/ulysses.py
        """
        if ranks == 1:
            return self
        length = -(-self.length // ranks) + 1
        supervised = min(self.supervised, self.sequences * length)
        return Batch(self.sequences, length, supervised, self.squares, padded=False)


@dataclass(frozen=True)
class Mode:
    """How activations are made.

    Attributes:
        size: bytes of one.
        on_cpu: dropout keeps a mask as large as what it drops, not a byte for each.
        attention: as `hardware.attention`.
        shared: whether ranks share every sequence; this one then has a piece.
    """

    size: int
    on_cpu: bool
    attention: str
    shared: bool = False


def block(llm: Llm, batch: Batch, mode: Mode, *, trained: bool, lora: Lora | None) -> int:
    """One block of the LLM without its residual stream."""
    rows, s = batch.rows, mode.size
    kept = _norms(llm, rows, s, trained=trained)
    kept += _attention(llm, batch, mode)
    kept += rows * s * (_mlp(llm) + (llm.intermediate if trained else 0))
    if trained:
        kept += rows * s * llm.hidden * llm.n_norms  # what q, k, v and the MLP are made of
        # The result of attention once more, brought back to this rank's piece, for the product behind it.
        kept += rows * s * llm.heads * llm.head_dim if mode.shared else 0
    if llm.dropout:
        kept += 2 * rows * llm.hidden * _mask(mode)
    return kept + _adapters(llm, rows, mode, lora)


def _norms(llm: Llm, rows: int, s: int, *, trained: bool) -> int:
    """RMSNorm: its input in fp32, one root per row, and the normalised rows when its weight learns.

    LayerNorm: its input, and mean and deviation. In fp32 the input is the residual stream itself.
    """
    if llm.norm == "layer":
        return llm.n_norms * rows * (llm.hidden * s + 2 * FP32)
    return llm.n_norms * rows * (llm.hidden * (FP32 + trained * s) + FP32)


def _attention(llm: Llm, batch: Batch, mode: Mode) -> int:
    rows, s = batch.rows, mode.size
    wide, narrow = llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
    # With a mask, keys and values of grouped heads are repeated for every head before the kernel sees them.
    repeats = mode.attention in ("eager", "xformers") or (mode.attention == "sdpa" and batch.padded)
    repeated = llm.heads != llm.kv_heads and repeats
    keys = wide if repeated else narrow
    kept = wide + keys + wide  # q, k and the result
    kept += wide + 2 * narrow if llm.fused and not repeated else keys  # v, a view of all three when they came as one
    if mode.attention == "eager":
        scores = batch.sequences * llm.heads * batch.length**2
        return rows * s * kept + scores * (FP32 + (s if s < FP32 else 0))
    kept_bytes = rows * (s * kept + FP32 * llm.heads)
    if batch.padded and mode.attention == "sdpa":
        kept_bytes += batch.sequences * batch.length**2 * s  # the mask as numbers, made again in each block
    return kept_bytes


def _mlp(llm: Llm) -> int:
    """Elements per row between the two products: gate, its SiLU, up; or what the activation function needs."""
    if llm.gated:
        return 3 * llm.intermediate
    # gelu_new is a formula of torch operations: x, x/2, tanh, 1 + tanh.
    return {"gelu": 1, "silu": 1, "gelu_new": 4}[llm.activation] * llm.intermediate


def _mask(mode: Mode) -> int:
    return mode.size if mode.on_cpu else 1


def _adapters(llm: Llm, rows: int, mode: Mode, lora: Lora | None) -> int:
    """Inputs of A (dropped, with their masks, once per layer; else shared by layers with one input), and of B."""
    if lora is None:
        return 0
    layers = llm.adapted(lora)
    inner = rows * mode.size * lora.r * len(layers)
    if lora.dora:
        # The layer's own result, scaled and not yet; and the lengths of its rows are those of a whole weight.
        inner += 2 * rows * mode.size * sum(layer.n_out for layer in layers)
        inner += mode.size * max((layer.n_in * layer.n_out for layer in layers), default=0)
    if lora.dropout:
        return inner + sum(rows * layer.n_in for layer in layers) * (mode.size + _mask(mode))
    outs = ("o_proj", "dense", "out_proj")  # its input is the result of attention, kept anyway
    shared = {(layer.n_in, layer.name[0] in "gu") for layer in layers if layer.name not in outs}
    return inner + rows * mode.size * sum(width for width, _ in shared)


def llm_kept(llm: Llm, batch: Batch, mode: Mode, *, trained: bool, lora: Lora | None, together: int) -> int:
    """All blocks, and the final norm with what the head needs.

    Args:
        together: blocks of which only the first one's input is kept (gradient checkpointing); 0: all is.
    """
    rows, s = batch.rows, mode.size
    end = rows * (llm.hidden * (FP32 if llm.norm == "rms" else s) + 2 * FP32)
    end += rows * llm.hidden * s * (2 if llm.norm == "rms" else 1) if trained else 0
    if together:
        return end + checkpoints(llm, batch, s, together)
    return end + llm.layers * block(llm, batch, mode, trained=trained, lora=lora)


def checkpoints(llm: Llm, batch: Batch, s: int, together: int) -> int:
    """The inputs of all units of N blocks."""
    return -(-llm.layers // together) * batch.rows * llm.hidden * s


def block_backward(llm: Llm, batch: Batch, mode: Mode, *, trained: bool) -> int:
    """What the backward pass of a block needs at its fullest, beyond what was kept.

    Behind the last product: the gradient of its input beside those of both factors, or that of the activation function.
    What that product kept for its own weight is gone by then. And the gradient of the residual stream, twice.
    """
    inner = 2 if llm.activation == "gelu" else 3
    return batch.rows * mode.size * ((inner - trained) * llm.intermediate + 2 * llm.hidden)


def tower_kept(tower: Tower, n_squares: int, s: int, *, checkpointing: bool) -> int:
    """A tower that learns; a frozen one keeps nothing."""
    rows = n_squares * tower.tokens
    if checkpointing:
        return tower.blocks * rows * tower.hidden * s
    return tower.blocks * tower_block(tower, rows, s)


def tower_block(tower: Tower, rows: int, s: int) -> int:
    """Two norms with their inputs and outputs, q, k, v and the result, and the MLP: 8 widths and the inner ones."""
    inner = {"gelu": 2, "quick_gelu": 3}[tower.activation] * tower.intermediate
    return rows * (s * (8 * tower.hidden + inner) + FP32 * (4 + tower.heads))


def tower_passing(tower: Tower, n_squares: int, s: int) -> int:
    """A frozen tower at its fullest: the layers asked for, a block's residual stream, and the inside of its MLP."""
    rows = n_squares * tower.tokens
    inner = {"gelu": 2, "quick_gelu": 3}[tower.activation] * tower.intermediate
    pixels = n_squares * 3 * tower.edge**2
    return s * (rows * (min(tower.kept, tower.blocks) * tower.hidden + 2 * tower.hidden + inner) + pixels)


def connector_kept(connector: Connector, n_squares: int, s: int) -> int:
    """What the connector keeps, and its rows."""
    return n_squares * s * connector.saved
