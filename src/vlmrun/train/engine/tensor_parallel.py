"""Tensor parallelism of the LLM: how DeepSpeed's AutoTP has to cut it, and how a cut tensor becomes whole again.

Tower, connector, embeddings, norms and the output head stay whole on every rank. A layer whose outputs are cut
("column") keeps some heads or some of the MLP's width; the next one takes cut inputs ("row") and sums over the ranks.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from vlmrun.errors import ConfigError
from vlmrun.train import dist

# transformers' word, AutoTP's, and the dimension of a weight that is cut. A bias is cut with the outputs only.
_STYLES = {"colwise": ("column", 0), "rowwise": ("row", 1)}


class Cut:
    """Which parameters of a model are cut, and where.

    Args:
        vlm: before AutoTP has cut it.

    Raises:
        ConfigError: when transformers has no plan for the LLM, or one of another kind.
    """

    def __init__(self, vlm: Any, size: int) -> None:
        self.size = size
        base = vlm.llm.get_decoder()
        prefix = next(name for name, module in vlm.named_modules() if module is base)
        plan = dict(base.config.get_text_config().base_model_tp_plan or {})
        if not plan or set(plan.values()) - set(_STYLES):
            raise ConfigError(
                f"transformers' plan for {type(vlm.llm).__name__} is not one of whole columns and rows",
                "hardware.tensor_parallel",
                "hardware.tensor_parallel=1, and ZeRO-3",
            )
        self._plan = {
            re.compile(rf"{re.escape(prefix)}\.{re.escape(name)}".replace(r"\*", r"\d+") + r"\.(weight|bias)"): style
            for name, style in plan.items()
        }
        self._shapes = {name: tuple(p.shape) for name, p in vlm.named_parameters() if self.dimension(name) is not None}
        assert self._shapes, f"{plan} matches nothing"
        uneven = [name for name, shape in self._shapes.items() if shape[self._must(name)] % size]
        if uneven:
            raise ConfigError(
                f"{uneven[0]} {self._shapes[uneven[0]]} cannot be cut into {size} equal pieces",
                "hardware.tensor_parallel",
                "a divisor of the LLM's heads, key-value heads and MLP width",
            )

    def config(self) -> dict[str, Any]:
        """DeepSpeed's `tensor_parallel` block; with a partition of its own, AutoTP guesses nothing."""
        specs = [
            {"patterns": [f"^{pattern.pattern}$"], "partition_type": _STYLES[style][0]}
            for pattern, style in self._plan.items()
        ]
        return {"autotp_size": self.size, "partition_config": {"use_default_specs": False, "layer_specs": specs}}

    def dimension(self, name: str) -> int | None:
        """The dimension along which a parameter is cut; None: it is whole."""
        for pattern, style in self._plan.items():
            if found := pattern.fullmatch(name):
                bias = found[1] == "bias"
                return (0 if style == "colwise" else None) if bias else _STYLES[style][1]
        return None

    def whole(self, name: str, piece: Tensor, group: Any) -> Tensor:
        """A parameter put together; a collective of the group."""
        pieces = [torch.empty_like(piece) for _ in range(self.size)]
        torch.distributed.all_gather(pieces, piece.contiguous(), group=group)
        made = torch.cat(pieces, dim=self._must(name))
        # DeepSpeed's own export writes one rank's slice under the full name, and says it went well.
        assert tuple(made.shape) == self._shapes[name], f"{name}: {tuple(made.shape)}, not {self._shapes[name]}"
        return made

    def check(self, vlm: nn.Module) -> None:
        """Stops a model that was not cut as planned, and marks what was with its whole shape (`checkpoints.native`)."""
        for name, parameter in vlm.named_parameters():
            if (dimension := self.dimension(name)) is not None:
                shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
                assert shape[dimension] * self.size == self._shapes[name][dimension], f"{name} {shape} is not cut"
                parameter.whole_shape = self._shapes[name]  # type: ignore[attr-defined]

    def _must(self, name: str) -> int:
        dimension = self.dimension(name)
        assert dimension is not None
        return dimension


def group_norm(whole: list[Tensor], cut: list[Tensor], group: Any) -> Tensor:
    """The norm of gradients of which some are pieces."""
    squares = [sum(gradient.float().square().sum() for gradient in given) for given in (whole, cut)]
    pieces = dist.on_device(torch.as_tensor(squares[1], dtype=torch.float32))
    torch.distributed.all_reduce(pieces, group=group)
    return (torch.as_tensor(squares[0]) + pieces).sqrt()
