"""Vision transformers of transformers beyond CLIP, SigLIP and DINOv2: a row for each family. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vlmrun.arch.config_files import size
from vlmrun.arch.towers import Arithmetic, Config, Facts, Transformer
from vlmrun.errors import ConfigError


@dataclass(frozen=True)
class Row:
    """A family.

    Attributes:
        model: its class; the config's is called alike.
        leading: tokens in front of the patches; registers, where a config names some, come on top.
        prepared_like: the family whose images are made ready in the same way, where the folder does not say.
        resizable: its positions are computed or interpolated for images of another size than the weights were made for.
    """

    model: str
    leading: int
    prepared_like: Literal["clip", "dinov2"]
    resizable: bool

    @property
    def config(self) -> str:
        """The class of its config."""
        return self.model.removesuffix("Model") + "Config"


ROWS = {
    "aimv2_vision_model": Row("Aimv2VisionModel", 0, "clip", resizable=False),
    "dinov2_with_registers": Row("Dinov2WithRegistersModel", 1, "dinov2", resizable=True),
    "dinov3_vit": Row("DINOv3ViTModel", 1, "dinov2", resizable=True),
    "internvl_vision": Row("InternVLVisionModel", 1, "dinov2", resizable=True),
    "metaclip_2_vision_model": Row("MetaClip2VisionModel", 1, "clip", resizable=False),
    "mlcd_vision_model": Row("MLCDVisionModel", 1, "clip", resizable=True),
}
# Whole models whose vision half is read, and what an older release called the same family.
OTHER_NAMES = {
    "aimv2": "aimv2_vision_model",
    "metaclip_2": "metaclip_2_vision_model",
    "mlcd": "mlcd_vision_model",
    "internvl": "internvl_vision",
}


@dataclass(frozen=True)
class Vit(Transformer):
    """Of these families, whose config.json may state sizes as [height, width]."""

    def facts(self) -> Facts:
        """As stated; a size of two equal numbers is one.

        Raises:
            ConfigError: for an `image_size` that the family does not take.
        """
        values = {key: _one(value) for key, value in self.config.items()}
        check_size(values, self.arguments.get("image_size"))
        return Arithmetic(values, self.arguments).facts()


def check_size(config: Config, image_size: int | None) -> None:
    """Refuses images of a size that the family's positions cannot take, or that are not whole patches.

    Raises:
        ConfigError: for those.
    """
    if image_size is None:
        return
    own, patch = size(config, "image_size"), size(config, "patch_size")
    name = str(config.get("model_type"))
    row = ROWS.get(OTHER_NAMES.get(name, name))
    native = bool(config.get("is_native"))  # AIMv2 with computed positions
    if row is not None and not (row.resizable or native or image_size == own):
        raise ConfigError(
            f"{name} takes images of {own} pixels only: its positions are not interpolated",
            "model.tower.image_size",
            "model.tower.image_size=null",
        )
    if image_size < 1 or image_size % patch:
        near = max(1, round(image_size / patch)) * patch
        raise ConfigError(
            f"image_size {image_size} is no multiple of the patch size {patch}", "model.tower.image_size", f"{near}"
        )


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value and all(each == value[0] for each in value) else value
