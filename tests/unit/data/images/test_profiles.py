"""Images with color profiles, as a person sees them: profiles are built here from their numbers."""

import logging
import struct
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from vlmrun.data.images import profiles
from vlmrun.data.images.finding import ImageFile
from vlmrun.data.images.loading import load_image, size_and_kinds
from vlmrun.data.images.opening import opened
from vlmrun.data.images.seeing import AS_UPSTREAM, ON_WHITE, to_rgb

# Columns: XYZ of red, green and blue at white D50. Source: the profiles' own rXYZ, gXYZ and bXYZ.
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
SPACES = {
    "Display P3": np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]),
    "Adobe RGB": np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]),
}
GAMMA = 2.2


def icc(space, kind=b"mntr", pcs=b"XYZ ", **tags):
    """A profile of version 2."""

    def number(value):
        return struct.pack(">i", round(value * 65536))

    white = b"XYZ \0\0\0\0" + b"".join(map(number, (0.9642, 1.0, 0.8249)))
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"made\0" + b"\0" * 78
    found = {"desc": text, "wtpt": white, "cprt": b"text\0\0\0\0none\0"}
    for name, value in tags.items():
        if isinstance(value, float):
            value = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))
        elif not isinstance(value, bytes):
            value = b"XYZ \0\0\0\0" + b"".join(map(number, value))
        found[name] = value + b"\0" * (-len(value) % 4)
    at, table, body = 128 + 4 + 12 * len(found), b"", b""
    for name, value in found.items():
        value += b"\0" * (-len(value) % 4)
        table += name.encode() + struct.pack(">II", at + len(body), len(value))
        body += value
    size = at + len(body)
    head = struct.pack(">I4sI4s4s4s12s4s", size, b"\0" * 4, 0x02400000, kind, space, pcs, b"\0" * 12, b"acsp")
    head = head.ljust(68, b"\0") + b"".join(map(number, (0.9642, 1.0, 0.8249)))
    return head.ljust(128, b"\0") + struct.pack(">I", len(found)) + table + body


def rgb_profile(matrix, gamma=GAMMA):
    red, green, blue = matrix.T
    return icc(b"RGB ", rXYZ=red, gXYZ=green, bXYZ=blue, rTRC=gamma, gTRC=gamma, bTRC=gamma)


def gray_profile(gamma):
    return icc(b"GRAY", kTRC=gamma)


def cmyk_profile(inks):
    """Of a printer whose colors are mixed linearly, in Lab, from its 16 full overprints."""
    identity = b"".join(struct.pack(">i", 65536 * (row == column)) for row in range(3) for column in range(3))
    ramp = bytes(range(256))
    grid = b"".join(
        bytes((round(light * 2.55), round(a + 128), round(b + 128)))
        for light, a, b in (inks(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1))
    )
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + ramp * 4 + grid + ramp * 3
    return icc(b"CMYK", b"prtr", b"Lab ", A2B0=table)


def seen_by_hand(pixels, matrix):
    """[..., 3] of a space in sRGB, by the formulas."""
    linear = (np.asarray(pixels) / 255.0) ** GAMMA @ (np.linalg.inv(SRGB) @ matrix).T
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def written(image, form, profile, **options):
    file = BytesIO()
    image.save(file, form, icc_profile=profile, **options)
    return file.getvalue()


def seen(content, view=ON_WHITE):
    with opened(BytesIO(content), "it", fix="") as image:
        return np.asarray(to_rgb(image, view)).astype(int)


def kinds(tmp_path, content):
    (tmp_path / "it").write_bytes(content)
    found = size_and_kinds(ImageFile(tmp_path / "it"), ON_WHITE, decode=False)[1]
    assert found == size_and_kinds(ImageFile(tmp_path / "it"), ON_WHITE, decode=True)[1]
    return found


LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(SPACES)), form=st.sampled_from(sorted(LOSSLESS)))
def test_colors_of_a_profile_are_those_of_its_formulas(data, name, form):
    values = st.tuples(*[st.integers(0, 255)] * 3)
    pixels = np.array([data.draw(st.lists(values, min_size=1, max_size=12))], np.uint8)
    content = written(Image.fromarray(pixels), form, rgb_profile(SPACES[name]), **LOSSLESS[form])
    expected = seen_by_hand(pixels, SPACES[name])
    bright = pixels.min(-1, keepdims=True) >= 24  # near black the formulas are steep and 8 bits are few
    assert (np.abs(seen(content) - expected) * bright).max() <= 3
    assert np.array_equal(seen(content, AS_UPSTREAM), pixels)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_format_carries_its_profile(tmp_path, form):
    image = Image.new("RGB", (16, 16), (60, 200, 90))
    content = written(image, form, rgb_profile(SPACES["Adobe RGB"]))
    expected = seen_by_hand([60, 200, 90], SPACES["Adobe RGB"])
    assert np.abs(seen(content)[8, 8] - expected).max() <= 8  # lossy ones, too
    assert np.abs(seen(content, AS_UPSTREAM)[8, 8] - [60, 200, 90]).max() <= 8
    assert kinds(tmp_path, content) == ["image_profile"]


@pytest.mark.parametrize("profile", [None, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()])
def test_srgb_changes_nothing_and_is_not_counted(tmp_path, profile):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    content = written(Image.fromarray(pixels), "PNG", profile)
    assert np.array_equal(seen(content), pixels)
    assert kinds(tmp_path, content) == []


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_gray_of_a_profile(tmp_path, mode):
    """Gray that is linear in light: the middle is brighter than its number says."""
    gray = Image.new("L", (4, 4), 64)
    image = Image.fromarray(np.full((4, 4), 64 * 257, np.uint16)) if mode == "I;16" else gray.convert(mode)
    found = seen(written(image, "PNG", gray_profile(1.0)))
    expected = 255 * (1.055 * (64 / 255) ** (1 / 2.4) - 0.055)
    assert np.abs(found - expected).max() <= 2
    assert "image_profile" in kinds(tmp_path, written(image, "PNG", gray_profile(1.0)))


def test_gray_with_a_profile_of_rgb_takes_its_curve():
    content = written(Image.new("L", (4, 4), 64), "JPEG", rgb_profile(SRGB, 1.0))
    assert np.abs(seen(content) - 137).max() <= 3


def test_palettes_and_transparency_keep_their_places():
    matrix = SPACES["Display P3"]
    image = Image.new("P", (2, 1))
    image.putpalette([60, 200, 90, 255, 0, 0])
    image.putpixel((1, 0), 1)
    found = seen(written(image, "PNG", rgb_profile(matrix), transparency=1))
    assert np.abs(found[0, 0] - seen_by_hand([60, 200, 90], matrix)).max() <= 3
    assert found[0, 1].tolist() == [255, 255, 255], "the background is no color of the image"
    half = seen(written(Image.new("RGBA", (1, 1), (60, 200, 90, 128)), "PNG", rgb_profile(matrix)))
    expected = seen_by_hand([60, 200, 90], matrix) * (128 / 255) + 255 * (127 / 255)
    assert np.abs(half[0, 0] - expected).max() <= 3


def _ink(cyan, magenta, yellow, black):
    light = (100 - 30 * (cyan + magenta + yellow) / 1.2) * (1 - black)
    return light, 60 * (magenta - cyan) * (1 - black), 60 * (yellow - cyan) * (1 - black)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_images_for_print_have_the_colors_of_their_inks(tmp_path, form):
    to_srgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    for inks in ((0, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
        content = written(Image.new("CMYK", (16, 16), tuple(255 * ink for ink in inks)), form, cmyk_profile(_ink))
        light, a, b = _ink(*inks)
        lab = Image.frombytes("LAB", (1, 1), bytes((round(light * 2.55), int(a) % 256, int(b) % 256)))
        expected = ImageCms.applyTransform(lab, to_srgb).getpixel((0, 0))
        assert np.abs(seen(content)[8, 8] - expected).max() <= 8, inks
        assert kinds(tmp_path, content) == ["image_colors", "image_profile"]
    assert np.array_equal(seen(content, AS_UPSTREAM)[8, 8], [0, 0, 0])


CMYK, RGB, GRAY = cmyk_profile(_ink), rgb_profile(SPACES["Adobe RGB"]), gray_profile(1.8)
BROKEN = {
    "not a profile": (b"nothing of the kind", "RGB"),
    "empty": (b"\0", "RGB"),
    "cut": (RGB[:200], "RGB"),
    "tags that lead nowhere": (RGB[:132] + b"\xff" * (len(RGB) - 132), "RGB"),
    "of a device that is none": (icc(b"RGB ", b"link"), "RGB"),
    "no colors": (icc(b"RGB "), "RGB"),
    "of print on a photograph": (CMYK, "RGB"),
    "of gray on a photograph": (GRAY, "RGB"),
    "of a photograph on print": (RGB, "CMYK"),
    "of print on gray": (CMYK, "L"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_profile_is_ignored_aloud(tmp_path, name, caplog):
    profile, mode = BROKEN[name]
    image = Image.new("RGB", (8, 8), (60, 200, 90)).convert(mode)
    content = written(image, "TIFF", profile)
    profiles._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        logging.getLogger("vlmrun").propagate = True
        found = seen(content)
        seen(content)
    assert np.array_equal(found, seen(content, AS_UPSTREAM))
    assert [record.message.partition(":")[0] for record in caplog.records] == ["an image's color profile is ignored"]
    assert "image_profile_broken" in kinds(tmp_path, content)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), original=st.sampled_from([RGB, GRAY, CMYK]), mode=st.sampled_from(["RGB", "L", "CMYK", "RGBA"]))
def test_no_profile_stops_an_image(data, original, mode):
    damaged = bytearray(original)
    for at in data.draw(st.lists(st.integers(0, len(original) - 1), max_size=20)):
        damaged[at] = data.draw(st.integers(0, 255))
    damaged = bytes(damaged[: data.draw(st.integers(1, len(original)))])
    content = written(Image.new(mode, (4, 4)), "TIFF", damaged)
    assert seen(content).shape == (4, 4, 3)
    with opened(BytesIO(content), "it", fix="") as image:
        assert profiles.kind(image) in (None, "image_profile", "image_profile_broken")


def test_a_profile_that_a_jpeg_holds_in_part_is_broken(tmp_path):
    content = written(Image.new("RGB", (8, 8), "red"), "JPEG", rgb_profile(SPACES["Adobe RGB"]))
    at = content.index(b"ICC_PROFILE\0") + 12
    (tmp_path / "a.jpg").write_bytes(content[:at] + b"\1\2" + content[at + 2 :])  # the first of two
    assert size_and_kinds(ImageFile(tmp_path / "a.jpg"), ON_WHITE, decode=True)[1] == ["image_profile_broken"]
    assert np.array_equal(load_image(tmp_path / "a.jpg"), load_image(tmp_path / "a.jpg", view=AS_UPSTREAM))
