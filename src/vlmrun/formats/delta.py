"""Delta weights: a model as the difference from its base LLM, as LLaVA published its first ones.

The difference is taken in fp16 unless another type is asked for, as upstream takes it, so what comes back differs from
the original by fp16 rounding: the one format whose round trip is not exact. In fp32 it is, for weights in 16 bits; how
many tensors come back rounded is reported either way.
Rows that the model's vocabulary has and the base's has not are stored whole.

Nothing but their numbers tells a delta from a model: the scale of a final norm is near zero in one only.

Source: haotian-liu/LLaVA@c121f043 llava/model/make_delta.py and apply_delta.py (fp16; leading rows combined)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from vlmrun.errors import CheckpointError, Problem
from vlmrun.formats import base_model, hf, manifest, upstream, upstream_config
from vlmrun.formats.base import LLM_CONFIG, How, Model
from vlmrun.weights.lazy import Lazy
from vlmrun.weights.reader import Reader

_NORMS = ("model.norm.weight", "model.final_layernorm.weight")
_NEAR_ZERO = 0.05


def detect(folder: Path) -> bool:
    """Whether the final norm of an LLM would silence it."""
    if not (upstream.LLAVA.detect(folder) or upstream.KOLLAVA.detect(folder) or hf.detect(folder)):
        return False
    try:
        reader = Reader(folder)
    except CheckpointError:
        return False
    norms = [name for name in _NORMS if name in reader.names()]
    return any(reader.get(name).float().abs().mean().item() < _NEAR_ZERO for name in norms)


def read(folder: Path, how: How) -> Model:
    """The model: base + difference."""
    base = base_model.language_model(how, folder)
    inner = upstream.LLAVA if "mm_vision_tower" in upstream_config.read(folder) else hf
    model: Model = inner.read(folder, replace(how, base=None))
    dtypes = manifest.read(folder, how).get("dtypes", {})
    for name, delta in model.tensors.items():
        if name in base.tensors:
            model.tensors[name] = combined(name, delta, base.tensors[name], 1)
        if name in dtypes:
            model.tensors[name] = model.tensors[name].to(getattr(torch, dtypes[name]))
    _check(base, model)
    return model


def refuse(model: Model, how: How) -> list[Problem]:
    """There must be a base of the same shape."""
    if how.base is None:
        return [Problem("a delta is a difference from something", "", "give --base DIR")]
    _check(base_model.language_model(how, how.base), model)
    return upstream.LLAVA.refuse(model, how) if model.config is not None else hf.refuse(model, how)


def write(model: Model, folder: Path, how: How) -> None:
    """Model - base, laid out as the model itself would be."""
    assert how.base is not None
    base, dtype = base_model.language_model(how, how.base), how.dtype or torch.float16
    tensors = dict(model.tensors)
    unequal: set[str] = set()
    for name, value in model.tensors.items():
        if name in base.tensors:
            tensors[name] = difference(name, value, base.tensors[name].to(dtype), unequal)
    shifted = replace(model, tensors=tensors)
    if model.config is not None:  # upstream's scripts expect nothing of a tower in a delta
        upstream.LLAVA.write(shifted, folder, how, tower_inside=False)
    else:
        hf.write(shifted, folder, how)
    dtypes = {name: str(value.dtype).removeprefix("torch.") for name, value in model.tensors.items()}
    manifest.write(folder, "delta", model, dtypes=dtypes)
    if unequal:
        model.notes.append(
            f"{len(unequal)} of {len(tensors)} tensors will come back rounded, as upstream's do; of weights in 16 bits "
            "--dtype fp32 keeps every bit"
        )


def combined(name: str, ours: Lazy, base: Lazy, sign: int) -> Lazy:
    """Sum or difference over the base's rows; further rows stay as they are."""

    def rows(start: int, stop: int) -> torch.Tensor:
        found = ours.rows(start, stop).clone()
        shared = min(stop, len(base))
        if shared > start:
            found[: shared - start] += sign * base.rows(start, shared).to(found.dtype)
        return found

    if ours.shape[1:] != base.shape[1:] or len(ours) < len(base):
        raise CheckpointError(
            f"{name} is {list(ours.shape)}, in the base {list(base.shape)}", "", "name the base it was made from"
        )
    return replace(ours, rows=rows)


def difference(name: str, value: Lazy, base: Lazy, unequal: set[str]) -> Lazy:
    """Difference in the base's type; adds its name to `unequal` when the sum will not be the value again."""
    shifted = combined(name, value.to(base.dtype), base, -1)

    def rows(start: int, stop: int) -> torch.Tensor:
        found = shifted.rows(start, stop)
        back = combined(name, replace(shifted, rows=lambda *_: found), base, 1).rows(start, stop)
        if not torch.equal(back.to(value.dtype), value.rows(start, stop)):
            unequal.add(name)
        return found

    return replace(shifted, rows=rows)


def _check(base: Model, model: Model) -> None:
    lost = sorted(base.tensors.keys() - model.tensors.keys())
    tied = model.json[LLM_CONFIG].get("tie_word_embeddings", False)
    lost = [name for name in lost if not (tied and name == "llm.lm_head.weight")]
    if lost:
        raise CheckpointError(
            f"{len(lost)} tensors of the base are not in the model, first {lost[0]}", "", "name the base it belongs to"
        )
