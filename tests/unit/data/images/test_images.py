import contextlib
import io
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmrun.data.images import opening
from vlmrun.data.images.finding import ImageFolder
from vlmrun.data.images.fitting import pad_to_square
from vlmrun.data.images.loading import image_of, image_size, load_image, open_image
from vlmrun.data.images.transform import ImageTransform
from vlmrun.errors import CheckpointError, DataError

CLIP = {
    "size": {"shortest_edge": 20},
    "crop_size": {"height": 20, "width": 20},
    "do_center_crop": True,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SIGLIP = {"size": {"height": 24, "width": 24}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def picture(width=16, height=12, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images" / "train").mkdir(parents=True)
    picture().save(tmp_path / "images" / "train" / "a.png")
    picture().save(tmp_path / "secret.png")
    return tmp_path / "images"


def test_opens_below_the_root(root):
    image = open_image(ImageFolder(root), "train/../train/a.png")
    assert image.mode == "RGB"
    assert image.size == (16, 12)


def test_a_size_is_read_without_the_picture(root, monkeypatch):
    whole = (root / "train" / "a.png").read_bytes()
    (root / "cut.png").write_bytes(whole[:60])  # its head is there, its pixels are not
    assert image_size(ImageFolder(root), "train/a.png") == image_size(ImageFolder(root), "cut.png") == (16, 12)
    (root / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read"):
        image_size(ImageFolder(root), "bad.png", "record 3")
    with pytest.raises(DataError, match="does not exist"):
        image_size(ImageFolder(root), "none.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16 * 12 // 3)  # Pillow's own limit stays behind ours
    with pytest.raises(DataError, match="too large"):
        image_size(ImageFolder(root), "train/a.png")


def test_links_inside_the_root_are_fine(root):
    (root / "b.png").symlink_to(root / "train" / "a.png")
    assert open_image(ImageFolder(root), "b.png").size == (16, 12)


def test_nothing_outside_the_root_is_opened(root):
    (root / "link.png").symlink_to(root.parent / "secret.png")
    (root / "up").symlink_to(root.parent)
    for name in (
        "../secret.png",
        str(root.parent / "secret.png"),
        "link.png",
        "up/secret.png",
        "train/../../secret.png",
    ):
        with pytest.raises(DataError, match="is outside the image folder"):
            open_image(ImageFolder(root), name, "f.json[1]")


def test_unusable_names(root):
    (root / "loop.png").symlink_to(root / "loop.png")
    for name in ("a\0b.png", "loop.png", "", "train"):
        with pytest.raises(DataError):
            open_image(ImageFolder(root), name)
    with pytest.raises(DataError, match="has no image folder"):
        open_image(None, "a.png")


def test_missing_image_says_where_and_suggests(root):
    with pytest.raises(DataError, match=r"did you mean 'a\.png'") as error:
        open_image(ImageFolder(root), "train/a.jpg", "f.json[1] (id 'x')")
    assert error.value.problems[0].where == f"{root / 'train' / 'a.jpg'}, named in f.json[1] (id 'x')"


def test_truncated_and_foreign_files(root):
    whole = (root / "train" / "a.png").read_bytes()
    for name, content in (("half.png", whole[: len(whole) // 2]), ("empty.png", b""), ("text.png", b"hello")):
        (root / name).write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            open_image(ImageFolder(root), name)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_damaged_files_never_raise_anything_else(tmp_path, kind):
    buffer = io.BytesIO()
    picture(24, 24).save(buffer, kind)
    rng = random.Random(kind)
    for number in range(60):
        content = bytearray(buffer.getvalue())
        for _ in range(rng.randint(1, 6)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path = tmp_path / f"{number}.img"
        path.write_bytes(content[: rng.randint(1, len(content))] if number % 2 else content)
        with contextlib.suppress(DataError):
            assert load_image(path).mode == "RGB"


def test_a_huge_image_is_an_error_that_says_what_is_allowed(root, monkeypatch):
    assert open_image(ImageFolder(root, max_pixels=16 * 12), "train/a.png").size == (16, 12)
    with pytest.raises(DataError, match="is too large: 16 x 12 are") as error:
        open_image(ImageFolder(root, max_pixels=16 * 12 - 1), "train/a.png")
    assert "image_megapixels" in error.value.problems[0].fix
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    with pytest.raises(DataError, match="is too large") as error:
        open_image(ImageFolder(root), "train/a.png")
    assert error.value.problems[0].fix == "make it smaller"


def test_a_huge_image_of_no_data_set_is_made_smaller(root, monkeypatch):
    """A data entry's limit is not theirs, and nothing beyond Pillow's own can be allowed."""
    with pytest.raises(DataError, match="is too large") as sent:
        image_of((root / "train/a.png").read_bytes(), "it", max_pixels=9)
    monkeypatch.setattr(opening, "MOST_PIXELS", 16 * 12 - 1)
    with pytest.raises(DataError, match="is too large") as beyond:
        open_image(ImageFolder(root, max_pixels=9), "train/a.png")
    Image.new("1", (8001, 8001)).save(root / "large.png")
    with pytest.raises(DataError, match="is too large") as named:
        load_image(root / "large.png")
    assert [each.value.problems[0].fix for each in (sent, beyond, named)] == ["make it smaller"] * 3


def test_an_extreme_shape_must_not_grow_into_a_huge_one(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(DataError, match="would grow to 20 x 20000"):
        ImageTransform(CLIP)(picture(1, 1000), "square")
    with pytest.raises(DataError, match="would grow to 1000 x 1000"):
        ImageTransform(CLIP)(picture(1, 1000), "pad")


def test_palette_with_transparency_opens_quietly(tmp_path):
    image = picture().convert("P")
    image.save(tmp_path / "p.png", transparency=bytes([0, 128] * 8))
    assert load_image(tmp_path / "p.png").mode == "RGB"


@settings(max_examples=25, deadline=None)
@given(width=st.integers(2, 60), height=st.integers(2, 60), seed=st.integers(0, 9))
def test_pixels_equal_the_pillow_processors_of_transformers(width, height, seed):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    image = picture(width, height, seed)
    for config, theirs in ((CLIP, CLIPImageProcessorPil(**CLIP)), (SIGLIP, SiglipImageProcessorPil(**SIGLIP))):
        transform = ImageTransform(config)
        found = transform(image, "square")
        assert found.shape == (3, *transform.size)
        assert found.dtype == np.float32
        expected = theirs(image, return_tensors="np")["pixel_values"][0]
        assert np.array_equal(found, expected)  # to the bit: the arithmetic is the same


def test_pad_centres_on_the_mean_colour():
    image = picture(5, 2)
    square = np.array(pad_to_square(image, (1, 2, 3)))
    assert square.shape == (5, 5, 3)
    assert np.array_equal(square[1:3], np.array(image))  # of three spare rows the odd one goes below
    assert (square[[0, 3, 4]] == (1, 2, 3)).all()
    assert ImageTransform(CLIP).pad_colour == (122, 116, 104)
    assert ImageTransform(SIGLIP).pad_colour == (127, 127, 127)


def test_a_crop_larger_than_the_image_is_filled_with_zeros():
    config = {"do_resize": False, "do_center_crop": True, "crop_size": 6, "do_rescale": False, "do_normalize": False}
    found = ImageTransform(config)(Image.new("RGB", (3, 4), (9, 9, 9)), "square")
    assert found.shape == (3, 6, 6)
    assert found.sum() == 3 * 12 * 9


def test_pictures_of_different_sizes_are_refused():
    with pytest.raises(CheckpointError, match="different sizes"):
        ImageTransform({"size": {"shortest_edge": 20}})
    with pytest.raises(CheckpointError, match="not understood"):
        ImageTransform({"size": {"longest_edge": 20}})


def test_a_picture_that_a_person_named_is_not_skipped(tmp_path):
    (tmp_path / "p.png").write_bytes(b"x")
    with pytest.raises(DataError, match="cannot be read") as error:
        load_image(tmp_path / "p.png")
    assert "on_error" not in str(error.value)
    with pytest.raises(DataError, match="or on_error: skip"):
        load_image(tmp_path / "p.png", "f.json[1]")
