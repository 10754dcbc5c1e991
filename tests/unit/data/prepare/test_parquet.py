"""Parquet files as `datasets` writes them become JSON and image files."""

import io
import json
import sys

import pytest
from PIL import Image

from vlmrun.cli import app
from vlmrun.data import formats
from vlmrun.data.prepare import parquet
from vlmrun.errors import DataError


def png(color):
    held = io.BytesIO()
    Image.new("RGB", (4, 3), color).save(held, "PNG")
    return held.getvalue()


TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]


@pytest.fixture
def write(tmp_path):
    """Writes rows as a Parquet file."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    def write(rows, name="f.parquet"):
        writer.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
        return tmp_path / name

    return write


def test_rows_become_records_and_bytes_become_files(tmp_path, write):
    rows = [
        {"id": "a", "image": {"bytes": png("red"), "path": "x.png"}, "conversations": TALK, "system": None},
        {"id": "b", "image": None, "conversations": [{"from": "human", "value": "Why?"}, TALK[1]], "system": "Hm."},
    ]
    assert parquet.convert(write(rows), tmp_path / "out" / "d.json") == 2
    records = json.loads((tmp_path / "out" / "d.json").read_text("utf-8"))
    assert records[0] == {"id": "a", "image": "00000000.png", "conversations": TALK}
    assert "image" not in records[1]
    assert records[1]["system"] == "Hm."
    assert (tmp_path / "out" / "images" / "00000000.png").read_bytes() == png("red")
    found = list(formats.reader("llava")(tmp_path / "out" / "d.json"))
    assert [(each.images, each.system) for each in found] == [(("00000000.png",), None), ((), "Hm.")]


def test_lists_of_images_of_several_files_are_read_as_sharegpt(tmp_path, write):
    for number in (0, 1):
        images = [{"bytes": png(color), "path": None} for color in ("red", "blue")]
        talk = [{"from": "human", "value": "<image> or <image>?"}, TALK[1]]
        write([{"id": f"r{number}", "images": images, "conversations": talk}], f"{number}.parquet")
    assert app.main(["data", "convert", str(tmp_path), str(tmp_path / "out.json"), "--from", "parquet"]) == 0
    found = list(formats.reader("sharegpt")(tmp_path / "out.json"))
    assert [each.id for each in found] == ["r0", "r1"]
    assert found[1].images == ("00000001_0.png", "00000001_1.png")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"image": {"bytes": b"no image", "path": None}}, "no known format"),
        ({"image": 3}, "neither bytes nor a name"),
        ({"sound": b"abc"}, "column 'sound' holds a bytes"),
    ],
)
def test_what_a_row_holds_and_json_cannot_is_named_and_nothing_is_left(tmp_path, write, row, told):
    with pytest.raises(DataError, match=told) as error:
        parquet.convert(write([{"id": "a"} | row]), tmp_path / "out" / "d.json")
    assert error.value.problems[0].where.endswith("[0]")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_is_no_parquet_is_a_data_error(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "f.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="cannot be read"):
        parquet.convert(tmp_path / "f.parquet", tmp_path / "d.json")


def test_without_pyarrow_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="needs pyarrow") as error:
        parquet.convert(tmp_path / "f.parquet", tmp_path / "d.json")
    assert error.value.problems[0].fix == parquet.EXTRA
