"""Pixels against those that the original codes recorded, to the bit (same Pillow and numpy arithmetic; golden g2)."""

import hashlib
import re

import numpy as np
import pytest

from tests.parity.golden import CASES, cases, tensors
from vlmrun.config.schema import Tiles
from vlmrun.data.images.finding import ImageFolder
from vlmrun.data.images.fitting import best_grid, fit_into, pad_to_square
from vlmrun.data.images.loading import open_image
from vlmrun.data.images.seeing import AS_UPSTREAM
from vlmrun.data.images.transform import ImageTransform

IMAGES = CASES / "g2_images/images"
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}

# Errors of the originals that are none here: an image one pixel high or wide has its channels mistaken for that edge,
# and DenseConnector's processor of SigLIP cannot be called without padding. Both are prepared like any other image.
BETTER_HERE = {"ValueError": r"mean must have 1 elements", "TypeError": r"not callable"}


def _processor(name):
    family, size = re.fullmatch(r"(.*?)(\d+)", name).groups()
    size = int(size)
    if family == "clip":
        crop = {"height": size, "width": size}
        return {"size": {"shortest_edge": size}, "do_center_crop": True, "crop_size": crop, "resample": 3, **CLIP}
    assert family in ("siglip", "dcsiglip"), f"no processor for {name}"
    return {"size": {"height": size, "width": size}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def _tiles(case):
    grids = case.get("image_grid_pinpoints")
    return Tiles(grids=[list(grid) for grid in grids], merge="flat") if grids else None


def _hash(value):
    return hashlib.sha256(value.tobytes()).hexdigest()


def _differences(case):
    """Everything about a case that is recorded and is another here."""
    image = open_image(ImageFolder(IMAGES), case["image"], view=AS_UPSTREAM)
    transform = ImageTransform(_processor(case["processor"]), _tiles(case))
    aspect = case["image_aspect_ratio"]
    if "pad_color" in case:
        square = pad_to_square(image, transform.pad_colour)
        if list(transform.pad_colour) != case["pad_color"]:
            yield "pad_color"
        if list(square.size) != case["square_size"] or _hash(square) != case["square_sha256"]:
            yield "square"
    if "best_resolution" in case:
        grid = best_grid(image.size, transform.grids)
        if list(grid) != case["best_resolution"]:
            yield "best_resolution"
        if _hash(fit_into(image, grid)) != case["resized_padded_sha256"]:
            yield "resized and padded"
    pixels, layout = transform.tiles(image, aspect)
    if "grid_shape" in case and list(layout.grid) != case["grid_shape"]:
        yield "grid_shape"
    if case["result"] != "ok":
        assert re.search(BETTER_HERE[case["error_type"]], case["error_text"]), f"{case['id']}: a new kind of error"
        if not np.isfinite(pixels).all() or pixels.shape[1:] != (3, *transform.size):
            yield "an image upstream refuses is not whole here"
        return
    if list(pixels.shape) != case["shape"][-4:] or _hash(pixels) != case["sha256_float32"]:
        yield "pixels"


@pytest.mark.parametrize("project", ["llava", "bunny", "dense"])
def test_every_case(project):
    different, compared = {}, 0
    for case in cases(f"g2_images/{project}.jsonl.gz"):
        found = list(_differences(case))
        compared += case["result"] == "ok"
        if found:
            different[case["id"]] = found
    assert not different
    assert compared > 0


@pytest.mark.parametrize("project", ["llava", "bunny", "dense"])
def test_recorded_tensors(project):
    """The same once more as numbers, so that another build of Pillow would show how far off it is."""
    recorded, compared = tensors(f"g2_images/{project}_pixels.safetensors"), 0
    for case in cases(f"g2_images/{project}.jsonl.gz"):
        for every in (1, 4, 16):
            name = case["id"] if every == 1 else f"{case['id']}/every{every}"
            if name not in recorded:
                continue
            transform = ImageTransform(_processor(case["processor"]), _tiles(case))
            pixels, _ = transform.tiles(
                open_image(ImageFolder(IMAGES), case["image"], view=AS_UPSTREAM), case["image_aspect_ratio"]
            )
            expected = recorded[name].numpy()
            found = pixels[..., ::every, ::every].reshape(expected.shape)
            assert np.array_equal(found, expected), (name, np.abs(found - expected).max())
            compared += 1
    assert compared > 0
