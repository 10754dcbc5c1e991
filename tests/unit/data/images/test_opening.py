"""The door: nothing else opens images, only known formats pass, and whatever decoders raise is a data error."""

import ast
import contextlib
import struct
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vlmrun
from vlmrun.data.images.loading import image_of, load_image
from vlmrun.data.images.opening import FORMATS, opened
from vlmrun.errors import DataError, LaunchError

SOURCES = Path(vlmrun.__file__).parent
# What would start a program, call another library, or parse a language.
NEVER = {"EPS", "PDF", "FPX", "WMF", "PSD", "GRIB", "BUFR", "HDF5", "FITS", "MIC", "SPIDER", "IPTC", "MPEG", "PCD"}


def _opens_images(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("PIL"):
            yield from (alias.name for alias in node.names if alias.name in ("open", "ImageFile", "ImageShow"))
        if (
            isinstance(node, ast.Attribute)
            and node.attr in ("open", "open_read")
            and "Image" in ast.unparse(node.value)
        ):
            yield ast.unparse(node)


def test_nothing_but_the_door_opens_images():
    found = {}
    for file in SOURCES.rglob("*.py"):
        if calls := list(_opens_images(ast.parse(file.read_text("utf-8")))):
            found[file.relative_to(SOURCES).as_posix()] = calls
    assert found == {"data/images/opening.py": ["Image.open"]}


def test_the_door_knows_formats_of_pixels_only():
    assert not NEVER & set(FORMATS)
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def _zip():
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", "b")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (EPS, "a PostScript file"),
        (b"%PDF-1.7\n", "a PDF file"),
        (_zip(), "a zip file"),
        (b"\n<!DOCTYPE html><html>404", "a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 40, "HEIC"),
        (b"\0\0\0\x18ftypisom" + b"\0" * 40, "a video"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"", "it is empty"),
        (b"\xff\xd7\xffhello", "no image of a format"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path, content, words, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *args, **options: pytest.fail("a program was started"))
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read") as error:
        load_image(tmp_path / "a.jpg")
    assert words in error.value.problems[0].what


def damaged_dds():
    """A DDS header whose pixel format says nothing."""
    words = (
        struct.pack("<7I", 124, 0x1007, 16, 16, 48, 0, 0) + bytes(44) + struct.pack("<8I", 32, *[0] * 2, 24, *[0] * 4)
    )
    return b"DDS " + words + struct.pack("<5I", 0x1000, 0, 0, 0, 0) + bytes(768)


def test_an_unusual_error_of_a_decoder_is_a_data_error():
    with pytest.raises(DataError, match="cannot be read"):
        image_of(damaged_dds(), "it")


@pytest.mark.parametrize(
    "error",
    [RuntimeError, NotImplementedError, struct.error, SyntaxError, MemoryError, AssertionError, KeyError, OSError],
)
def test_whatever_is_raised_while_an_image_is_open_is_a_data_error(error):
    file = BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    with pytest.raises(DataError, match="it cannot be read"), opened(file, "it", fix=""):
        raise error
    with pytest.raises(LaunchError), opened(file, "it", fix=""):  # not what is said in our own words
        raise LaunchError("stopped")
    with pytest.raises(KeyboardInterrupt), opened(file, "it", fix=""):
        raise KeyboardInterrupt


def _files():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
    for kind in (
        "JPEG",
        "PNG",
        "WEBP",
        "GIF",
        "BMP",
        "AVIF",
        "TIFF",
        "JPEG2000",
        "PPM",
        "ICO",
        "DDS",
        "SGI",
        "PCX",
        "TGA",
    ):
        file = BytesIO()
        image.save(file, kind)
        yield file.getvalue()


FILES = list(_files())


@settings(max_examples=300, deadline=None)
@given(
    content=st.sampled_from(FILES),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    length=st.floats(0.01, 1.0),
)
def test_damaged_files_of_every_format_give_pixels_or_a_data_error(content, flips, length):
    damaged = bytearray(content[: max(1, int(len(content) * length))])
    for place, value in flips:
        damaged[place % len(damaged)] = value
    with contextlib.suppress(DataError):
        assert image_of(bytes(damaged), "it", max_pixels=1_000_000).mode == "RGB"


def test_a_header_that_claims_gigabytes_is_refused_before_anything_is_decoded():
    file = bytearray(next(content for content in FILES if content.startswith(b"\x89PNG")))
    file[16:24] = struct.pack(">II", 60_000, 60_000)
    import zlib

    file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
    with pytest.raises(DataError, match="is too large"):
        image_of(bytes(file), "it")
