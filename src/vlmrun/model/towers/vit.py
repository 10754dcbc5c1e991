"""Vision transformers of transformers beyond CLIP, SigLIP and DINOv2: a row for each family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmrun.arch import vits as arch
from vlmrun.arch.vits import OTHER_NAMES, ROWS
from vlmrun.config.paths import locate, read_config
from vlmrun.errors import CheckpointError, ConfigError, closest
from vlmrun.model import blocks
from vlmrun.model.towers import clip, dinov2
from vlmrun.model.towers.hf import PREPROCESSOR, HuggingFaceTower, load_parts, read_preprocessor

_STATISTICS = ("image_mean", "image_std", "resample")


_PREPARATIONS = {"clip": clip.preparation, "dinov2": dinov2.preparation}
_ELSEWHERE = {"clip": "clip", "clip_vision_model": "clip", "siglip": "siglip", "siglip_vision_model": "siglip",
              "dinov2": "dinov2"}  # fmt: skip


class Vit(HuggingFaceTower):
    """Patch features of any family of `ROWS`; class and register tokens are left out.

    Blocks take different arguments by family, so the model runs whole and hooks keep what its blocks give.

    Args:
        image_size: edge of the images, where the family's positions take another than the weights were made for;
            whole patches.

    Raises:
        ConfigError: for an `image_size` that the family does not take.
    """

    ARITHMETIC = arch.Vit

    def __init__(  # noqa: PLR0913 - every key of the YAML is an argument
        self,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        layers: Sequence[int] | None = (-2,),
        scales: Sequence[int] | None = None,
        image_size: int | None = None,
        *,
        dtype: torch.dtype,
        attention: str,
    ) -> None:
        name = _family(read_config(path) if path is not None else config or {}, path)
        row = ROWS[name]
        accepted = (name, *(other for other, same in OTHER_NAMES.items() if same == name))
        model, source = load_parts(path, config, (row.model, row.config, accepted), dtype=dtype, attention=attention)
        for key in ("image_size", "patch_size"):
            setattr(model.config, key, _one(getattr(model.config, key)))
        arch.check_size(model.config.to_dict(), image_size)
        leading = row.leading + int(getattr(model.config, "num_register_tokens", None) or 0)
        super().__init__(model, layers, scales, n_class=leading, n_dropped=leading, image_size=image_size)
        self.prepare(source, _PREPARATIONS[row.prepared_like](self.image_size))

    def prepare(self, source: Path | None, preprocessor: dict[str, Any]) -> None:
        """The size always comes from here; of a folder, its statistics are taken."""
        super().prepare(None, preprocessor)
        self.source = source
        if source is not None and (source / PREPROCESSOR).is_file():
            told = read_preprocessor(source)
            self.preprocessor = self.preprocessor | {key: told[key] for key in _STATISTICS if key in told}

    @property
    def blocks(self) -> Any:
        """The encoder's layers."""
        return [self.model.get_submodule(name) for name in blocks.names(self.model)]

    def _encode(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        chain = list(self.blocks)

        def before(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            found[0] = given[0] if given else named["hidden_states"]

        def behind(index: int) -> Callable[[Any, Any, Any], None]:
            def keep(_: nn.Module, __: Any, result: Any) -> None:
                found[index] = result[0] if isinstance(result, tuple) else result

            return keep

        hooks = [chain[0].register_forward_pre_hook(before, with_kwargs=True)]
        hooks += [block.register_forward_hook(behind(index)) for index, block in enumerate(chain, start=1)]
        try:
            self.model(pixels)
        finally:
            for hook in hooks:
                hook.remove()
        return [found[index][:, self.first :] for index in self.layers]  # each [N, P, Dv]

    def unused(self) -> list[nn.Parameter]:
        """Blocks behind the deepest requested layer, and whatever is neither a block nor in front of the first."""
        names = blocks.names(self.model)
        stem = names[0].rpartition(".")[0]
        used = tuple(f"{name}." for name in names[: max(self.layers)])
        return [
            parameter
            for name, parameter in self.model.named_parameters()
            if name.endswith("mask_token") or not (name.startswith(used) or _in_front(name, stem))
        ]


def _in_front(name: str, stem: str) -> bool:
    return not name.startswith(f"{stem}.") and any(word in name for word in ("emb", "pre_layrnorm"))


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) else value


def _family(config: dict[str, Any], path: str | None) -> str:
    """The row of a config.json.

    Raises:
        ConfigError: when a config of one's own names another family.
        CheckpointError: when the folder holds one.
    """
    name = str(config.get("model_type"))
    name = OTHER_NAMES.get(name, name)
    if name in ROWS:
        return name
    if name in _ELSEWHERE:
        fix = f"model/tower={_ELSEWHERE[name]}"
    else:
        near = closest(name, sorted({*ROWS, *_ELSEWHERE}))
        fix = (f"did you mean {near!r}? " if near else "") + (
            f"families: {', '.join(sorted(ROWS))}; of timm: model/tower=timm; else a tower of your own "
            "(docs/guides/own-parts.md)"
        )
    what = f"no vision tower of the family {name!r} is known"
    if path is None:
        raise ConfigError(what, "model.tower.config.model_type", fix)
    raise CheckpointError(what, str(locate(path)), fix)
