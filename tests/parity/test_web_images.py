"""The page's image modes against recordings of the original page's."""

import pytest
from PIL import Image

from tests.parity.golden import cases, files
from vlmrun.errors import DataError
from vlmrun.serve.web.images import prepared


@pytest.mark.parametrize("name", files("g8_eval/web_image_*.jsonl.gz"))
def test_sizes_and_colours(name):
    for case in cases(name):
        given, expected = case["input"], case["output"]
        image = Image.new("RGB", (given["width"], given["height"]), tuple(given["colour"]))
        try:
            made = prepared(image, given["mode"])
        except DataError:
            assert "error" in expected
            continue
        if "error" in expected:  # the original fails when an edge would have no pixel left
            assert min(made.size) == 1
            continue
        assert (list(made.size), list(made.getpixel((0, 0)))) == (expected["size"], expected["corner_pixel"]), case[
            "id"
        ]
