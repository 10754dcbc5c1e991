"""What `check` knows of the data: records that cannot be used, too few for a batch or for the warm-up, no image."""

import json
import os

import pytest
from PIL import Image

from tests.unit.checks.test_values import composed
from vlmrun.checks import records
from vlmrun.checks.rules import check, check_records
from vlmrun.plan import run as planning

BASE = ("only=[pretrain]", "data=[llava]", "stage.pretrain.data=[llava]", "stage.pretrain.max_steps=null",
        "stage.pretrain.epochs=1.0", "stage.pretrain.global_batch=4", "stage.pretrain.micro_batch=4")  # fmt: skip


def record(number: int, image: str | None = "a.png") -> dict:
    said = [{"from": "human", "value": "<image>\nwhat?" if image else "what?"}, {"from": "gpt", "value": "a square"}]
    return {"id": str(number), "conversations": said, **({"image": image} if image else {})}


@pytest.fixture
def run(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def made(content, *overrides):
        file = tmp_path / "train.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return composed(*BASE, f"data.llava.annotations='{file}'", f"data.llava.images='{tmp_path}'", *overrides)

    return made


def told(problems) -> list[str]:
    return [f"{problem.where}: {problem.what} | {problem.fix}" for problem in problems]


def test_enough_records_are_no_problem(run):
    made = run([record(n) for n in range(200)])
    assert told(check(made)) == told(check_records(made)) == []


def test_a_batch_that_the_data_do_not_fill(run):
    (said,) = told(check(run([record(n) for n in range(6)], "stage.pretrain.global_batch=8")))
    assert "6 samples over 1 epoch(s) do not fill one global batch of 8" in said
    assert "stage.pretrain.global_batch=6 or less" in said


def test_weights_and_epochs_count(run):
    more = ("stage.pretrain.global_batch=8", "stage.pretrain.optim.warmup_ratio=0.0")
    assert told(check(run([record(n) for n in range(6)], *more, "stage.pretrain.epochs=2.0"))) == []
    assert told(check(run([record(n) for n in range(6)], *more, "stage.pretrain.data_weights=[2.0]"))) == []
    only_steps = ("stage.pretrain.epochs=null", "stage.pretrain.max_steps=3")
    assert told(check(run([record(n) for n in range(6)], *more, *only_steps))) == []


def test_a_warm_up_as_long_as_the_run(run):
    steps = ("stage.pretrain.optim.warmup_ratio=null", "stage.pretrain.optim.warmup_steps=50")
    (said,) = told(check(run([record(n) for n in range(100)], *steps)))
    assert said.startswith("stage.pretrain.optim.warmup_steps: all 25 update(s) that 100 samples make are warm-up")


def test_a_cooldown_longer_than_the_data_make(run):
    wsd = ("stage.pretrain.optim.schedule=wsd", "stage.pretrain.optim.cooldown_steps=1000")
    (said,) = told(check(run([record(n) for n in range(100)], *wsd)))
    assert said.startswith("stage.pretrain.optim.cooldown_steps: the cooldown takes 1000 steps, and the warm-up leaves")


def test_a_connector_cannot_learn_from_text_alone(run):
    (said,) = told(check(run([record(n, None) for n in range(200)])))
    assert "the connector cannot learn: no record has an image" in said


def test_records_that_cannot_be_used_are_named_and_counted(run):
    broken = [record(0), {"id": "x", "conversations": 3}, *(record(n) for n in range(1, 200))]
    first, total = told(check_records(run(broken)))
    assert "train.json" in first
    assert "1 of 201 records" in total
    assert "data.llava.on_error=skip" in total
    assert check_records(run(broken, "data.llava.on_error=skip")) == []


@pytest.mark.parametrize("content", ["", "[", "[]", "{}", "\x00", "[" * 5000])
def test_a_file_without_records_is_a_problem(run, content):
    assert told(check_records(run(content)))


def test_a_large_file_is_not_read_and_that_is_said(run, monkeypatch):
    monkeypatch.setattr(records, "MOST_BYTES", 10)
    made = run([{"broken": 1}] * 3)
    assert check_records(made) == []
    (said,) = records.unread(made)
    assert "data.llava" in said
    assert "vlmrun data lint" in said


def test_a_pipe_is_not_waited_for(run, tmp_path):
    made = run([])
    (tmp_path / "train.json").unlink()
    os.mkfifo(tmp_path / "train.json")
    assert any("no file" in line for line in told(check(made)))
    assert check_records(made) == []


def test_ignored_keys_are_ignored_here_too(run):
    odd = [record(n) | {"foo bar": 1} for n in range(8)]
    found = told(check_records(run(odd)))
    assert "key `foo bar` of the record is not read" in found[0]
    made = run(odd, "data.llava.ignore_keys=['foo bar']")
    assert told(check_records(made)) == told(check(made)) == []
    broken = run([*odd, {"id": "9"}], "data.llava.ignore_keys=['foo bar']")
    assert "--format llava --ignore-key 'foo bar' lists them" in told(check_records(broken))[-1]


def test_updates_are_counted_from_usable_records(run):
    made = run([*(record(n) for n in range(16)), *({"id": f"x{n}"} for n in range(8))], "data.llava.on_error=skip")
    assert planning.updates(made, made.stage["pretrain"]) == "4 updates"
    assert records.usable(made.stage["pretrain"], made) == {"llava": 16}
