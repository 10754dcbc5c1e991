"""SigLIP on images of any shape (NaViT): MiniCPM-V's vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from vlmrun.arch.towers import Navit
from vlmrun.errors import ConfigError, suggest
from vlmrun.model.towers.base import Grids
from vlmrun.model.towers.hf import HuggingFaceTower, load_parts
from vlmrun.model.towers.siglip import preprocessor

_NAMES = ("SiglipVisionModel", "SiglipVisionConfig", ("siglip", "siglip_vision_model"))
PROCESSOR = {"image_processor_type": "MiniCPMVImageProcessor"}
_POSITIONS = ("grid", "strip")


class SiglipNavit(HuggingFaceTower):
    """SigLIP whose trained positions are spread over an image's own grid of patches, one image apart from another.

    Two quirks of MiniCPM-Llama3-V 2.5, with which its weights were trained, can be turned on: both come from its strips
    of patches being taken for images one patch high. With either, features depend on the longest image beside.

    Args:
        layers: as in every tower; the last is -1, and 2.0 leaves it out (-2).
        image_size: edge of the square that `image_aspect: square` makes.
        positions: `grid`: a patch has the position of its place in the image, rows and columns. `strip`: of its place
            in a row as long as the longest image of the batch, whose positions are all in the first row.
        sees_padding: patches attend to what fills a shorter image up.

    Source:
        openbmb/MiniCPM-Llama3-V-2_5 modeling_minicpmv.py with transformers 4.40's Idefics2VisionTransformer
    """

    ARITHMETIC = Navit

    def __init__(  # noqa: PLR0913 - the keys of a YAML file, and what the run adds
        self,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        layers: Sequence[int] | None = (-1,),
        image_size: int = 448,
        positions: Literal["grid", "strip"] = "grid",
        sees_padding: bool = False,
        *,
        dtype: torch.dtype,
        attention: str,
    ) -> None:
        if positions not in _POSITIONS:
            fix = suggest(positions, _POSITIONS, noun="positions")
            raise ConfigError(f"unknown positions {positions!r}", "model.tower.positions", fix)
        model, source = load_parts(path, config, _NAMES, dtype=dtype, attention=attention)
        super().__init__(model, layers, image_size=image_size)
        self.positions = positions
        self.sees_padding = sees_padding
        self.patch = model.config.patch_size
        self.side = model.config.image_size // self.patch
        self.prepare(source, preprocessor(image_size) | PROCESSOR)
        # Whatever the folder was made for: images of this edge, or of any shape in whole patches.
        own = {"size": {"height": image_size, "width": image_size}, "do_center_crop": False, "patch_size": self.patch}
        self.preprocessor = self.preprocessor | own

    def forward(self, pixels: torch.Tensor, grids: Grids | None = None) -> list[torch.Tensor]:
        """Features after the final norm, of every requested layer."""
        hidden = self.model.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [N, P, Dv]
        if grids is None:
            rows, columns = (edge // self.patch for edge in pixels.shape[-2:])
            grids = [(rows, columns)] * len(pixels)
        hidden = hidden + self.model.embeddings.position_embedding(self._position_ids(grids, hidden))
        mask = self._mask(grids, hidden)  # [N, 1, P, P], or None
        found = {0: hidden}
        for index, layer in enumerate(self.blocks[: max(self.layers)], start=1):
            hidden = layer(hidden, mask)
            found[index] = hidden
        return [self.model.post_layernorm(found[index]) for index in self.layers]

    def unused(self) -> list[torch.nn.Parameter]:
        """Layers behind the deepest requested one; the final norm is used."""
        norm = {id(parameter) for parameter in self.model.post_layernorm.parameters()}
        return [parameter for parameter in super().unused() if id(parameter) not in norm]

    def _position_ids(self, grids: Grids, hidden: torch.Tensor) -> torch.Tensor:
        """Position of every patch, [N, longest]."""
        n_pictures, longest = hidden.shape[:2]
        if self.positions == "strip":
            return strip_positions(longest, self.side).expand(n_pictures, -1).to(hidden.device)
        ids = torch.zeros(n_pictures, longest, dtype=torch.long)
        for picture, grid in enumerate(grids):
            ids[picture, : grid[0] * grid[1]] = grid_positions(*grid, self.side)
        return ids.to(hidden.device)

    def _mask(self, grids: Grids, hidden: torch.Tensor) -> Any:
        """What the attention of this model takes for "only real patches"; None where nothing is filled up."""
        lengths = torch.tensor([rows * columns for rows, columns in grids], device=hidden.device)
        real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        if self.sees_padding or bool(real.all()):
            return None
        from transformers.masking_utils import create_bidirectional_mask

        return create_bidirectional_mask(config=self.model.config, inputs_embeds=hidden, attention_mask=real)


def grid_positions(rows: int, columns: int, side: int) -> torch.Tensor:
    """Numbers of trained positions, of a square of `side` a side, for a grid of patches row by row."""
    return (_spread(rows, side)[:, None] * side + _spread(columns, side)).flatten()


def strip_positions(length: int, side: int) -> torch.Tensor:
    """The same for a grid one patch high."""
    return grid_positions(1, length, side)


def _spread(n: int, side: int) -> torch.Tensor:
    """Which of `side` positions each of n places takes.

    In fp32 and by comparing fractions, as transformers 4.40's Idefics2 does: whole-number arithmetic, and transformers
    5's formula, fall on other sides in places.
    """
    places = torch.arange(0, 1 - 1e-6, float(1 / torch.tensor(n)))  # a step rounded to fp32
    return torch.bucketize(places, torch.arange(1 / side, 1.0, 1 / side), right=True)
