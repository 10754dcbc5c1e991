import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmrun.arch.tiles import n_tiles
from vlmrun.config.schema import Slices
from vlmrun.data.images import grid as slices
from vlmrun.data.images.open import ImageTransform
from vlmrun.data.sample import IMAGE_TAG
from vlmrun.data.templates import Piece
from vlmrun.errors import ConfigError

RULES = {"resolution": 56, "marks": "nested", "image_ids": "never"}
ANY_SHAPE = {"size": {"height": 56, "width": 56}, "patch_size": 14}
SQUARE = {"size": {"height": 20, "width": 20}}


def _rules(**changes):
    return Slices(**{"max_slices": 9, **RULES, **changes})


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 12))
def test_cells_are_few_whole_patches_and_of_about_the_area(width, height, most):
    rules = _rules(max_slices=most, resolution=448)
    found = slices.plan((width, height), rules, 14)
    sides = [*found.overview, *(found.cell or ())]
    assert all(side >= 14 and side % 14 == 0 for side in sides)
    if found.grid is None:
        assert width * height <= 448 * 448 or most == 1
        return
    columns, rows = found.grid
    assert 2 <= columns * rows <= most
    assert found.refined == (found.cell[0] * columns, found.cell[1] * rows)
    if max(found.cell) < 20 * min(found.cell):  # rounding to patches tells on very thin cells
        assert 0.6 < found.cell[0] * found.cell[1] / 448**2 < 1.5


def test_a_picture_becomes_strips_of_its_own_patches():
    transform = ImageTransform(ANY_SHAPE, _rules(max_slices=4))
    noise = np.random.default_rng(0).integers(0, 255, (130, 60, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    pixels, layout = transform.tiles(image, "slices")
    assert len(pixels) == n_tiles(layout) == len(layout.patches) == 3
    assert len({rows * columns for rows, columns in layout.patches}) > 1, "some are filled up"
    cut = slices.cut(image, slices.plan(image.size, transform.slices, 14))
    for strip, tile, (rows, columns) in zip(pixels, cut, layout.patches, strict=True):
        length = 14 * rows * columns
        assert (strip[:, :, length:] == 0).all()
        restored = strip[:, :, :length].reshape(3, 14, rows, columns, 14).transpose(0, 2, 1, 3, 4)
        expected = transform.scale(np.moveaxis(np.asarray(tile), -1, 0)[None])[0]
        assert (restored.reshape(expected.shape) == expected).all()


def test_a_tower_of_one_size_gets_slices_of_that_size():
    transform = ImageTransform(SQUARE, _rules(max_slices=4))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 120, 3), dtype=np.uint8))
    pixels, layout = transform.tiles(image, "slices")
    assert (layout.grid, layout.patches) == ((2, 1), ())
    assert pixels.shape == (3, 3, 20, 20)
    assert (pixels[0] == transform(image, "square")).all()
    assert pixels[1].mean() != pixels[2].mean()


def test_without_slices_in_the_model_it_says_so():
    with pytest.raises(ConfigError, match="image_aspect is slices"):
        ImageTransform(ANY_SHAPE).tiles(Image.new("RGB", (9, 9)), "slices")


@pytest.mark.parametrize("marks", ["nested", "flat", None])
@pytest.mark.parametrize("grid", [None, (2, 1), (1, 3)])
def test_a_block_has_a_place_for_every_tile(marks, grid):
    text = slices.block(grid, _rules(marks=marks))
    assert text.count(slices.TILE) == (1 if grid is None else 1 + grid[0] * grid[1])
    assert (text.replace(slices.TILE, "") == "") == (marks is None)


def test_numbers_of_pictures():
    grids = [None, (2, 1), (1, 2)]
    sliced = slices.blocks(grids, _rules(marks="flat", image_ids="sliced"))
    assert [text.partition("<image>")[0] for text in sliced] == [
        "", "<image_id>0</image_id>", "<image_id>1</image_id>",
    ]  # fmt: skip
    always = slices.blocks(grids, _rules(marks="flat", image_ids="always"))
    assert [text.partition("<image>")[0] for text in always] == [f"<image_id>{n}</image_id>" for n in range(3)]


def test_blocks_take_their_places_in_order():
    pieces = [Piece(f"a{IMAGE_TAG}b", False), Piece("c", True), Piece(f"{IMAGE_TAG}", False)]
    found = slices.in_place(pieces, ["1", "2"])
    assert [piece.text for piece in found] == ["a1b", "c", "2"]
    assert [piece.supervised for piece in found] == [False, True, False]
