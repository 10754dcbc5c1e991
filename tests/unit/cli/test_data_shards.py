"""`vlmrun data` on tar shards: there and back, shown, linted, and options that would have no effect."""

import json

import pytest
from PIL import Image

from vlmrun.cli import app as cli

TALK = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "a red star"}]
MORE = [*TALK, {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "yes"}]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    records = []
    for number in range(5):
        Image.new("RGB", (32, 24), (number * 40, 0, 0)).save(tmp_path / "images" / f"{number}.jpg")
        talk = MORE if number == 2 else TALK
        records.append({"id": f"k{number}", "image": f"images/{number}.jpg", "conversations": talk})
    (tmp_path / "d.json").write_text(json.dumps(records))
    return tmp_path


def test_records_go_to_shards_and_come_back(place, capsys):
    made = ["data", "convert", "d.json", "shards", "--to", "energon", "--max-count", "2", "--split", "2,1,0"]
    assert cli.main(made) == 0
    told = capsys.readouterr().err
    assert "5 samples in 3 shard(s)" in told
    assert "train 2 shard(s), val 1 shard(s), test 0 shard(s)" in told
    assert "1 samples have more than one question" in told
    assert cli.main(["data", "convert", "shards", "back", "--from", "wds"]) == 0
    back = json.loads((place / "back" / "records.json").read_text())
    assert [record["conversations"] for record in back] == [
        record["conversations"] for record in json.loads((place / "d.json").read_text())
    ]
    assert cli.main(["data", "lint", "shards", "--format", "energon", "--split", "val"]) == 0
    assert "ok: no problem in 1 records" in capsys.readouterr().out


def test_a_sample_of_a_shard_is_shown(place, capsys):
    assert cli.main(["data", "convert", "d.json", "shards", "--to", "wds"]) == 0
    run = ["model=micro", "name=mine", "data=[llava]", "data.llava.format=wds", "data.llava.annotations=shards",
           "data.llava.images=null", "stage=[pretrain]", "stage.pretrain.data=[llava]", "stage.pretrain.template=micro",
           "stage.pretrain.global_batch=2", "stage.pretrain.micro_batch=1"]  # fmt: skip
    assert cli.main(["data", "show", *run, "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["id"], len(found["turns"])) == ("k2", 4)
    assert found["images"][0]["name"].endswith("/k2.jpg")
    assert found["turns"][0]["text"] == "<image>What is it?"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "one of --to FORMAT and --from FORMAT"),
        (["--to", "wds", "--from", "wds"], "--from wds and --to wds exclude each other"),
        (["--to", "wds", "--split", "1,0,0"], "--split is of --to energon"),
        (["--to", "minicpm", "--max-count", "2"], "--max-count is of --to wds, energon"),
        (["--to", "energon", "--split", "half"], "is no split"),
        (["--to", "energon"], "gets none of 1 shard"),
    ],
)
def test_options_that_mean_nothing_are_refused(place, capsys, words, told):
    assert cli.main(["data", "convert", "d.json", "out", *words]) in (2, 3)
    assert told in capsys.readouterr().err
    assert not (place / "out").exists()
