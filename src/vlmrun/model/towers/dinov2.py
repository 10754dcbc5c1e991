"""DINOv2's vision transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from vlmrun.errors import ConfigError
from vlmrun.model.towers.hf import HuggingFaceTower, check_feature, load_parts

_NAMES = ("Dinov2Model", "Dinov2Config", ("dinov2",))
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Dinov2(HuggingFaceTower):
    """Patch features of DINOv2, with or without the class token in front.

    Args:
        image_size: edge of the images, when it is not the one of the weights (518): positions are interpolated.
    """

    def __init__(  # noqa: PLR0913 - every key of the YAML is an argument
        self,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        layers: Sequence[int] | None = (-2,),
        feature: Literal["patch", "cls_patch"] = "patch",
        scales: Sequence[int] | None = None,
        image_size: int | None = None,
        *,
        dtype: torch.dtype,
        attention: str,
    ) -> None:
        check_feature(feature)
        model, source = load_parts(path, config, _NAMES, dtype=dtype, attention=attention)
        patch = model.config.patch_size
        if image_size is not None and image_size % patch:
            near = max(1, round(image_size / patch)) * patch
            raise ConfigError(
                f"image_size {image_size} is no multiple of the patch size {patch}", "model.tower.image_size", f"{near}"
            )
        dropped = int(feature == "patch")
        super().__init__(model, layers, scales, n_class=1, n_dropped=dropped, image_size=image_size)
        # Its published preparation crops 224 whatever the model's size is, so the size always comes from here.
        self.prepare(source, {})
        self.preprocessor = self.preprocessor | preparation(self.image_size)

    @property
    def blocks(self) -> Any:
        """The encoder's layers."""
        return self.model.encoder.layer


def preparation(image_size: int) -> dict[str, Any]:
    """ImageNet's statistics; the shorter edge resized to the size itself, so that little is cropped."""
    return {
        "image_processor_type": "BitImageProcessor",
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
