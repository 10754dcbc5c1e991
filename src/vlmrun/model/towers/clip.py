"""CLIP's vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from vlmrun.model.towers.hf import HuggingFaceTower, check_feature, load_parts

_NAMES = ("CLIPVisionModel", "CLIPVisionConfig", ("clip", "clip_vision_model"))
_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


class Clip(HuggingFaceTower):
    """Patch features of CLIP, with or without the class token in front.

    Args:
        preprocessor: values merged over those of preprocessor_config.json, such as another mean.
    """

    def __init__(  # noqa: PLR0913 - every key of the YAML is an argument
        self,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        layers: Sequence[int] | None = (-2,),
        feature: Literal["patch", "cls_patch"] = "patch",
        scales: Sequence[int] | None = None,
        preprocessor: dict[str, Any] | None = None,
        *,
        dtype: torch.dtype,
        attention: str,
    ) -> None:
        check_feature(feature)
        model, source = load_parts(path, config, _NAMES, dtype=dtype, attention=attention)
        super().__init__(model, layers, scales, n_class=1, n_dropped=int(feature == "patch"))
        self.prepare(source, preparation(self.image_size))
        self.preprocessor = self.preprocessor | (preprocessor or {})

    def encoder_input(self, pixels: torch.Tensor) -> torch.Tensor:
        """CLIP norms its embeddings before the first layer."""
        normed: torch.Tensor = self.model.pre_layrnorm(self.model.embeddings(pixels))
        return normed


def preparation(image_size: int) -> dict[str, Any]:
    """CLIP's published preparation, at this size."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _MEAN,
        "image_std": _STD,
        "do_convert_rgb": True,
    }
