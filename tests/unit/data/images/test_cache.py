import numpy as np
import pytest
from PIL import Image

from vlmrun.config.schema import Slices, Tiles
from vlmrun.data.images import cache as picture_cache
from vlmrun.data.images.cache import PictureCache
from vlmrun.data.images.finding import ImageFile
from vlmrun.data.images.loading import load_image
from vlmrun.data.images.transform import ImageLayout, ImageTransform


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((960, 640)).save(path, quality=90)
    return path


TILES = Tiles(grids=[[32, 16], [16, 32]], merge="flat")
SLICES = Slices(max_slices=6, resolution=256, marks=None, image_ids="never")


@pytest.mark.parametrize(
    ("aspect", "tiles"), [("square", None), ("pad", None), ("anyres", TILES), ("slices", SLICES)], ids=str
)
def test_what_is_kept_is_equal_to_the_bit(picture, tmp_path, aspect, tiles):
    own_shape = {"patch_size": 8} if aspect == "slices" else {}
    transform = ImageTransform({"size": {"height": 16, "width": 16}, **own_shape}, tiles)
    cache = PictureCache(tmp_path / "cache", aspect)
    calls = []

    def make():
        calls.append(1)
        return transform.fit(load_image(picture), aspect)

    whole, layout = transform.tiles(load_image(picture), aspect)
    for _ in range(2):
        fitted, cut = cache.get(ImageFile(picture), make)
        assert np.array_equal(transform.scale(fitted, cut), whole)
        assert cut == layout
    assert len(calls) == 1


def test_layouts_without_a_grid_survive(picture, tmp_path):
    cache = PictureCache(tmp_path / "cache", "")
    made = np.zeros((1, 3, 2, 2), np.uint8), ImageLayout(None, (5, 7))
    assert (
        cache.get(ImageFile(picture), lambda: made)[1]
        == cache.get(ImageFile(picture), lambda: pytest.fail("made again"))[1]
        == made[1]
    )


def test_a_changed_picture_and_another_preparation_are_other_pictures(picture, tmp_path):
    made = [(np.full((1, 3, 2, 2), number, np.uint8), None) for number in range(3)]
    cache = PictureCache(tmp_path / "cache", "one")
    assert cache.get(ImageFile(picture), lambda: made[0])[0].max() == 0
    Image.new("RGB", (4, 4)).save(picture)
    assert cache.get(ImageFile(picture), lambda: made[1])[0].max() == 1
    assert PictureCache(tmp_path / "cache", "other").get(ImageFile(picture), lambda: made[2])[0].max() == 2


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-30], lambda data: data.replace(b"\x07", b"\x08")]
)
def test_a_damaged_file_is_made_again(picture, tmp_path, damage):
    cache = PictureCache(tmp_path / "cache", "")
    good = np.full((1, 3, 4, 4), 7, np.uint8), None
    cache.get(ImageFile(picture), lambda: good)
    (file,) = (tmp_path / "cache").rglob("*.npz")
    file.write_bytes(damage(file.read_bytes()))
    for _ in range(2):
        assert np.array_equal(cache.get(ImageFile(picture), lambda: good)[0], good[0])
    assert np.array_equal(cache.get(ImageFile(picture), lambda: pytest.fail("not mended"))[0], good[0])


def test_a_full_disk_ends_the_keeping_only(picture, tmp_path, monkeypatch):
    monkeypatch.setattr(picture_cache, "_RESERVED", 1.1)
    cache = PictureCache(tmp_path / "cache", "")
    made = np.zeros((1, 3, 2, 2), np.uint8), None
    assert cache.get(ImageFile(picture), lambda: made) is made
    assert not list((tmp_path / "cache").rglob("*.npz"))


def test_a_draft_is_smaller_but_not_below_what_is_needed(picture):
    assert load_image(picture).size == (960, 640)
    assert load_image(picture, draft=300).size == (480, 320)
    near = np.asarray(load_image(picture, draft=64).resize((16, 16)), dtype=float)
    exact = np.asarray(load_image(picture).resize((16, 16)), dtype=float)
    assert 0 < np.abs(near - exact).mean() < 4
