"""Keys of samples as Pai-Megatron-Patch sees them: one that contains `llava` changes the prompt. Free of torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from vlmrun.data.sample import IMAGE_TAG, Sample, Turn
from vlmrun.data.shards.tar import parse_place


def as_pai(sample: Sample, version: Literal["energon4", "energon7"]) -> Sample:
    """The sample with the prompt that Pai gives it: its image alone when `llava` occurs in its key.

    Under energon 4 the shard's name is a part of the key, so that a shard llava-0.tar changes all its samples.

    Source: alibaba/Pai-Megatron-Patch@a098ca5 examples/llava_mcore/dataset_helpers.py, encode_vqa
    """
    place = parse_place(sample.images[0]) if sample.images else None
    shard = f"{place.shard}/" if place is not None and version == "energon4" else ""
    if place is None or "llava" not in shard + sample.id:
        return sample
    return replace(sample, turns=(Turn("user", f"{IMAGE_TAG}\n"), *sample.turns[1:]))
