"""What `check` says of data in shards, before any shard is read."""

import json
import shutil

import pytest
from PIL import Image

from vlmrun.checks import shards
from vlmrun.config.schema import DataConfig
from vlmrun.data.prepare.write_shards import Layout, write
from vlmrun.data.shards import metadata


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    records = []
    for number in range(4):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.jpg")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "box"}]
        records.append({"id": str(number), "image": f"{number}.jpg", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records), "utf-8")
    write(
        folder / "data.json", folder / "wds", Layout(max_count=1), finish=lambda new: metadata.write(new, 7, [3, 1, 0])
    )
    return folder / "wds"


def told(folder, **changes):
    values = {"format": "energon", "annotations": str(folder), "images": None, "on_error": "fail"}
    data = DataConfig.model_validate(values | {"prepare": None, "about": None} | changes)
    return [problem.what for problem in shards._entry(data, "data.x")]


def test_sound_shards_are_left_alone(made):
    assert told(made) == told(made, split="val") == told(made, format="wds") == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "vla"}, "no part 'vla'"),
        ({"split": "test"}, "has no shard"),
        ({"images": "/pictures"}, "lie in the shards"),
        ({"fields": {"image": "jpg"}}, "what `context` is"),
        ({"fields": {"image": "jpg", "context": "json[", "answers": "json"}}, "is no place"),
        ({"format": "wds", "split": "val"}, "takes no split"),
        ({"format": "llava", "fields": {"image": "jpg"}}, "takes no fields"),
    ],
)
def test_what_cannot_be_read_is_told(made, changes, words):
    assert any(words in what for what in told(made, **changes))


def test_missing_shards_and_metadata_are_told(made, tmp_path):
    shutil.copytree(made, tmp_path / "wds")
    (tmp_path / "wds" / "pretrain-1.tar").unlink()
    assert "1 of 3 shards of the split are not there, pretrain-1.tar among them" in told(tmp_path / "wds")
    shutil.rmtree(tmp_path / "wds" / metadata.FOLDER)
    assert "cannot be read" in told(tmp_path / "wds")[0]
    assert told(tmp_path / "wds", format="wds") == []
