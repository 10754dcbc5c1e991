"""Pixels against those that the original codes recorded, to the bit (same Pillow and numpy arithmetic)."""

import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest

from vlmrun.data.images import ImageTransform, open_image

GOLDEN = Path(os.environ.get("VLMRUN_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))
PATTERNS = ("llava.jsonl.gz", "bunny.jsonl.gz")


def clip(size):
    return {
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }


def siglip(size):
    return {"size": {"height": size, "width": size}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


PROCESSORS = {"clip336": clip(336), "clip56": clip(56), "siglip384": siglip(384), "siglip42": siglip(42)}


def _files():
    return [path for name in PATTERNS if (path := GOLDEN / "g2_images" / name).is_file()]


def test_the_reference_data_are_there():
    if len(_files()) < len(PATTERNS):
        if os.environ.get("CI") == "true":
            pytest.fail(f"no reference data in {GOLDEN}: set VLMRUN_GOLDEN")
        pytest.skip(f"no reference data in {GOLDEN}")


@pytest.mark.parametrize("path", _files(), ids=lambda path: path.name.split(".")[0])
def test_pixels_equal_the_reference(path):
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        cases = [json.loads(line) for line in lines]
    transforms = {name: ImageTransform(config) for name, config in PROCESSORS.items()}
    compared, different = 0, []
    for case in cases:
        aspect = case["image_aspect_ratio"]
        if aspect == "anyres" or case["result"] != "ok":
            continue
        image = open_image(path.parent / "images", case["image"])
        pixels = transforms[case["processor"]](image, "pad" if aspect == "pad" else "square")
        compared += 1
        if hashlib.sha256(pixels.tobytes()).hexdigest() != case["sha256_float32"]:
            different.append(case["id"])
    assert not different
    assert compared > 0
