"""Linear layers, and the parameters of the adapters on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vlmrun.config.schema import Lora

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "dense", "Wqkv", "out_proj")


class Linear(NamedTuple):
    """A linear layer: the last part of its name, width in, width out, whether it has a bias."""

    name: str
    n_in: int
    n_out: int
    bias: bool = False

    @property
    def n_parameters(self) -> int:
        """Weight and bias."""
        return self.n_in * self.n_out + self.bias * self.n_out


def n_adapters(adapted: Sequence[Sequence[Linear]], lora: Lora, stem: str, last: int | None) -> int:
    """Parameters of adapters in blocks whose layers have their usual names, which patterns of ranks are tried on."""
    return sum(
        lora.rank(f"{stem}.{block}.{'self_attn' if linear.name in _ATTENTION else 'mlp'}.{linear.name}")
        * (linear.n_in + linear.n_out)
        + lora.dora * linear.n_out
        for block in range(len(adapted))[-(last or len(adapted)) :]
        for linear in adapted[block]
    )


def places(name: str) -> list[str]:
    """Full names that a linear layer of a block may have."""
    return [f"llm.model.layers.0.{part}.{name}" for part in ("self_attn", "mlp")]
