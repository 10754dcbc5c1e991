"""SigLIP's vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vlmrun.model.towers.hf import HuggingFaceTower, load_parts

_NAMES = ("SiglipVisionModel", "SiglipVisionConfig", ("siglip", "siglip_vision_model"))


class Siglip(HuggingFaceTower):
    """Patch features of SigLIP, which has no class token."""

    def __init__(
        self,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        layers: Sequence[int] | None = (-2,),
        scales: Sequence[int] | None = None,
        *,
        dtype: torch.dtype,
        attention: str,
    ) -> None:
        model, source = load_parts(path, config, _NAMES, dtype=dtype, attention=attention)
        super().__init__(model, layers, scales)
        self.prepare(source, preprocessor(self.image_size))


def preprocessor(image_size: int) -> dict[str, Any]:
    """SigLIP's published preparation, at this size."""
    return {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
