"""Images as a person sees them, and as upstream's `convert("RGB")` leaves them: every kind through a real file."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from vlmrun.data.images.finding import ImageFile
from vlmrun.data.images.loading import image_of, load_image, size_and_kinds
from vlmrun.data.images.seeing import AS_UPSTREAM, ON_WHITE, View, scaled, view_of


def written(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def both(path):
    """Pixels as a person sees them, and as upstream does."""
    return tuple(np.asarray(load_image(path, view=view)).astype(int) for view in (ON_WHITE, AS_UPSTREAM))


def kinds(path):
    return size_and_kinds(ImageFile(path), ON_WHITE, decode=True)[1]


def drawing(mode):
    """A black square in the middle of transparency whose hidden pixels are black as well."""
    alpha = np.zeros((8, 8), np.uint8)
    alpha[2:6, 2:6] = 255
    rgba = Image.fromarray(np.dstack([np.zeros((8, 8, 3), np.uint8), alpha]))
    if mode == "P":
        paletted = Image.new("P", (8, 8), 1)
        paletted.putpalette([0, 0, 0, 0, 0, 0])
        paletted.paste(0, (2, 2, 6, 6))
        return paletted
    return rgba.convert(mode)


TRANSPARENT = {
    "rgba.png": ("RGBA", {}),
    "gray.png": ("LA", {}),
    "palette.png": ("P", {"transparency": 1}),
    "palette_of_shares.png": ("P", {"transparency": bytes([255, 0])}),
    "rgba.webp": ("RGBA", {"lossless": True, "exact": True}),
    "rgba.tiff": ("RGBA", {}),
    "palette.gif": ("P", {"transparency": 1}),
    "rgba.avif": ("RGBA", {"quality": 100}),
    "gray.tiff": ("LA", {}),
    "rgba.jp2": ("RGBA", {}),
    "rgba.tga": ("RGBA", {}),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_shows_the_background(tmp_path, name):
    mode, options = TRANSPARENT[name]
    path = written(tmp_path, drawing(mode), name, **options)
    seen, upstream = both(path)
    assert seen[0, 0].min() >= 253
    assert seen[4, 4].max() <= 2
    assert upstream.max() <= 2  # one black square
    red = np.asarray(load_image(path, view=view_of("#ff0000"))).astype(int)
    assert np.abs(red[0, 0] - [255, 0, 0]).max() <= 2
    assert "image_transparent" in kinds(path)


def png(width, height, depth, color, rows, *chunks):
    """A PNG file by hand: Pillow writes no gray below 8 bits with a transparent value, and no EXIF behind pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    before = b"".join(chunk(*each) for each in chunks if each[0] != b"eXIf")
    behind = b"".join(chunk(*each) for each in chunks if each[0] == b"eXIf")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + before + data + behind + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "expected"),
    [
        (1, b"\x40", 0, [255, 255, 255, 255]),  # 0 1 0 0, black is transparent: all is white
        (1, b"\x40", 1, [0, 255, 0, 0]),
        (2, b"\x1b", 0, [255, 85, 170, 255]),  # 0 1 2 3
        (2, b"\x1b", 1, [0, 255, 170, 255]),
        (4, b"\x05\xaf", 5, [0, 255, 170, 255]),
        (8, b"\x00\x64\xc8\xff", 100, [0, 255, 200, 255]),
        (16, b"\x00\x00\x10\x00\x80\x00\xff\xff", 0x1000, [0, 255, 128, 255]),
    ],
)
def test_a_transparent_gray_value_of_any_depth(tmp_path, depth, row, transparent, expected):
    (tmp_path / "a.png").write_bytes(png(4, 1, depth, 0, [row], (b"tRNS", struct.pack(">H", transparent))))
    assert both(tmp_path / "a.png")[0][0, :, 0].tolist() == expected
    assert "image_transparent" in kinds(tmp_path / "a.png")


@pytest.mark.parametrize(("depth", "pixel"), [(8, bytes([1, 2, 3])), (16, bytes([1, 7, 2, 7, 3, 7]))])
def test_a_transparent_color(tmp_path, depth, pixel):
    color = struct.pack(">HHH", *struct.unpack(">BBB" if depth == 8 else ">HHH", pixel))
    (tmp_path / "a.png").write_bytes(png(2, 1, depth, 2, [pixel + b"\0" * len(pixel)], (b"tRNS", color)))
    assert both(tmp_path / "a.png")[0][0].tolist() == [[255, 255, 255], [0, 0, 0]]


def test_alpha_of_zeros_alone_is_unused_in_formats_that_always_have_room_for_it(tmp_path):
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert both(written(tmp_path, image, "a.tga"))[0].tolist() == np.full((4, 4, 3), [10, 20, 30]).tolist()
    assert both(written(tmp_path, image, "a.png"))[0].min() == 255


@settings(max_examples=40, deadline=None)
@given(data=st.data(), background=st.tuples(*[st.integers(0, 255)] * 3))
def test_composing_keeps_opaque_pixels_and_mixes_the_others(data, background):
    pixels = np.array(data.draw(st.lists(st.tuples(*[st.integers(0, 255)] * 4), min_size=1, max_size=12)), np.uint8)[
        None
    ]
    file = BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG")
    found = np.asarray(_seen(file.getvalue(), View(background))).astype(float)
    alpha = pixels[..., 3:] / 255
    assert np.abs(found - (pixels[..., :3] * alpha + np.array(background) * (1 - alpha))).max() <= 1
    opaque = pixels[..., 3] == 255
    assert np.array_equal(found[opaque], pixels[..., :3][opaque])


def _seen(content, view):
    from vlmrun.data.images import seeing
    from vlmrun.data.images.opening import opened

    with opened(BytesIO(content), "it", fix="") as image:
        return seeing.to_rgb(image, view)


def exif(number):
    found = Image.Exif()
    found[0x0112] = number
    return found.tobytes()


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.avif"])
def test_images_are_turned_as_their_exif_says(tmp_path, name, number):
    upright = np.zeros((24, 16, 3), np.uint8)
    upright[:12, :8] = (250, 0, 0)
    upright[12:, 8:] = (0, 0, 250)
    undo = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
            6: np.rot90, 7: lambda a: np.rot90(a.transpose(1, 0, 2), 2), 8: lambda a: np.rot90(a, 3)}  # fmt: skip
    stored = Image.fromarray(np.ascontiguousarray(undo.get(number, lambda a: a)(upright)))
    path = written(tmp_path, stored, name, exif=exif(number), **({"quality": 100} if name != "a.png" else {}))
    seen, upstream = both(path)
    assert seen.shape == upright.shape
    assert np.abs(seen[3:9, 2:6] - [250, 0, 0]).max() < 40
    assert np.abs(seen[15:21, 10:14] - [0, 0, 250]).max() < 40
    assert upstream.shape == np.asarray(stored).shape
    size, found = size_and_kinds(ImageFile(path), ON_WHITE, decode=False)
    assert size == (16, 24)
    assert ("image_turned" in found) == (number != 1)
    assert size_and_kinds(ImageFile(path), AS_UPSTREAM, decode=False)[0] == stored.size


def test_tiff_is_turned_once(tmp_path):
    image = Image.new("RGB", (6, 4))
    path = written(tmp_path, image, "a.tiff", tiffinfo={0x0112: 6})
    size, found = size_and_kinds(ImageFile(path), ON_WHITE, decode=True)
    assert load_image(path).size == size == (4, 6)
    assert found == ["image_turned"]


def test_exif_behind_a_pngs_pixels_counts(tmp_path):
    body = exif(6).removeprefix(b"Exif\0\0")
    (tmp_path / "a.png").write_bytes(png(2, 1, 8, 0, [b"\0\xff"], (b"eXIf", body)))
    assert size_and_kinds(ImageFile(tmp_path / "a.png"), ON_WHITE, decode=False) == ((1, 2), ["image_turned"])
    assert load_image(tmp_path / "a.png").size == (1, 2)


@pytest.mark.parametrize("damage", [b"Exif\0\0MM\0", b"Exif\0\0" + b"\xff" * 40, b"no exif"])
def test_damaged_exif_leaves_an_image_as_it_is_stored(tmp_path, damage):
    path = written(tmp_path, Image.new("RGB", (6, 4), "red"), "a.jpg", exif=damage)
    assert load_image(path).size == (6, 4)


def test_sixteen_bits_keep_their_levels(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for name in ("a.png", "a.tiff", "a.jp2"):
        seen, upstream = both(written(tmp_path, Image.fromarray(ramp), name))
        assert np.abs(seen[..., 0] - ramp / 257.0).max() <= 1, name
        assert (upstream == 255).mean() > 0.9, name
        assert kinds(tmp_path / name) == ["image_deep"]
    pgm = b"P5 8 8 65535\n" + ramp.astype(">u2").tobytes()
    (tmp_path / "a.pgm").write_bytes(pgm)
    assert np.abs(both(tmp_path / "a.pgm")[0][..., 0] - ramp / 257.0).max() <= 1


def test_levels_of_one_gray_stay_apart_in_every_deep_format(tmp_path):
    """A dark and a bright image without any contrast of their own."""
    for dtype in (np.uint16, np.int32, np.float32):
        dark, bright = (
            both(written(tmp_path, Image.fromarray(np.full((4, 4), value, dtype)), f"{value}.tiff"))[0].mean()
            for value in (20_000, 60_000)
        )
        assert (round(dark), round(bright)) == (78, 233), dtype


def test_white_is_zero_in_some_tiff_files(tmp_path):
    values = np.array([[0, 65535]], np.uint16)
    path = written(tmp_path, Image.fromarray(values), "a.tiff", tiffinfo={262: 0})
    with Image.open(path) as image:
        assert image.tag_v2[262] == 0
    assert both(path)[0][0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 128.0, 255.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, float("nan"), float("inf"), 1.0], [0, 0, 0, 255]),
        ([float("nan")], [0]),
        ([1e9, 1e9], [0, 0]),
    ],
)
def test_floats_are_scaled_by_their_range(tmp_path, values, expected):
    path = written(tmp_path, Image.fromarray(np.array([values], np.float32)), "a.tiff")
    assert both(path)[0][0, :, 0].tolist() == expected


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=30))
def test_scaling_keeps_the_order_of_values(values):
    found = scaled(np.array(values, np.int32), None)
    assert found.dtype == np.uint8
    order = np.argsort(values, kind="stable")
    assert (np.diff(found[order].astype(int)) >= 0).all()


def test_lab_and_cmyk(tmp_path):
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    color = Image.new("RGB", (8, 8), (200, 40, 60))
    path = written(tmp_path, ImageCms.applyTransform(color, to_lab), "a.tiff")
    assert np.abs(np.asarray(load_image(path)).astype(int) - [200, 40, 60]).max() <= 3
    assert kinds(path) == ["image_colors"]
    for name in ("a.jpg", "b.tiff"):
        path = written(tmp_path, color.convert("CMYK"), name)
        seen, upstream = both(path)
        assert np.abs(seen - [200, 40, 60]).max() <= 8, name
        assert np.array_equal(seen, upstream)
        assert kinds(path) == ["image_colors"]


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tiff", "a.avif"])
def test_of_several_frames_the_first_is_seen(tmp_path, name):
    first, second = (Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 0, 255)))
    path = written(tmp_path, first, name, save_all=True, append_images=[second])
    seen, _ = both(path)
    assert np.abs(seen - [255, 0, 0]).max() < 12
    assert kinds(path) == ["image_animated"]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 99), st.sampled_from(["RGB", "L", "1", "P"]))
def test_plain_images_are_seen_one_way(width, height, seed, mode):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
    file = BytesIO()
    image.save(file, "PNG")
    seen = image_of(file.getvalue(), "it")
    assert np.array_equal(np.asarray(seen), np.asarray(_seen(file.getvalue(), AS_UPSTREAM)))
