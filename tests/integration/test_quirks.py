"""Published quirks that change a training, each on and off; weights of sources and groups of length in a real run."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.integration import jobs
from tests.integration.jobs import NO_COMPAT, run, said
from vlmrun.errors import VlmrunError
from vlmrun.formats.load import describe

TOWER = {"tune": {"llm": "full", "tower": "full", "connector": "full"}}


def quirk(name, value=True):
    return {"compat": NO_COMPAT | {name: value}}


def tower_moved(job):
    made = load_file(job.path / "weights" / "tower" / "model.safetensors")
    began = load_file(job.path.parent / "parts" / "tower" / "model.safetensors")
    names = [next(known for known in began if known.endswith(name) or name.endswith(known)) for name in made]
    return any(not torch.equal(made[name], began[known]) for name, known in zip(made, names, strict=True))


@pytest.mark.parametrize(("engine", "zero"), [("plain", 0), ("deepspeed", 2)])
def test_a_tower_under_no_grad_is_listed_and_stays(tmp_path, engine, zero):
    quiet = {"weight_decay": 0.0, "engine": engine, "zero": zero, **TOWER}
    learnt = run(tmp_path, "learnt", **quiet)
    assert tower_moved(learnt)
    stayed = run(tmp_path, "stayed", **quiet, **quirk("tower_no_grad"))
    assert not tower_moved(stayed)
    assert "gets no gradient" in said(stayed)
    assert jobs.losses(stayed)[0] == jobs.losses(learnt)[0]
    assert jobs.losses(stayed) != jobs.losses(learnt)


def test_a_tower_in_half_precision_changes_the_features_alone(tmp_path):
    whole, half = run(tmp_path, "whole", zero=2), run(tmp_path, "half", zero=2, **quirk("fp16_tower"))
    assert jobs.losses(half) != jobs.losses(whole)
    assert jobs.losses(half) == pytest.approx(jobs.losses(whole), abs=1e-2)
    weights = load_file(half.path / "weights" / "connector" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_images_are_seen_on_the_background_or_as_upstream_sees_them(tmp_path):
    """Colors under full transparency: upstream trains on them, a person sees the background. The model keeps which."""
    jobs.write_records(tmp_path)
    for file in (tmp_path / "images").glob("*.png"):
        with Image.open(file) as image:
            clear = image.convert("RGBA")
        clear.putalpha(0)
        clear.save(file)
    white, black = run(tmp_path, "white"), run(tmp_path, "black", image_background="#000000")
    upstream = run(tmp_path, "upstream", **quirk("images", "upstream"))
    firsts = [jobs.losses(job)[0] for job in (white, black, upstream)]
    assert len(set(firsts)) == 3
    kept = [describe(job.path)["image_background"] for job in (white, black, upstream)]
    assert kept == ["#ffffff", "#000000", None]


def test_the_schedule_of_the_offload_file(tmp_path):
    job = run(tmp_path, "offload", connector_lr=None, warmup_ratio=0.5, max_steps=8, **quirk("offload_schedule"))
    rates = [row["lr"] for row in jobs.rows(job)]
    assert rates[0] == rates[4] == rates[7] == max(rates) == job.stage.optim.lr
    assert 0 == rates[1] < rates[2] < rates[0]
    usual = run(tmp_path, "usual", connector_lr=None, warmup_ratio=0.5, max_steps=6)
    assert jobs.rows(usual)[0]["lr"] == 0


def test_groups_of_length_and_weights_train_and_resume(tmp_path):
    changes = {"group_by_modality_length": True, "data_weights": [1.5], "micro_batch": 2, "global_batch": 4}
    job = run(tmp_path, "grouped", **changes)
    assert len(jobs.rows(job)) == 6
    plain = run(tmp_path, "shuffled", data_weights=[1.5])
    assert jobs.losses(plain) != jobs.losses(job)


def test_weights_that_fit_no_source_are_refused(tmp_path):
    with pytest.raises((AssertionError, VlmrunError), match="data weights"):
        run(tmp_path, "wrong", data_weights=[1.0, 2.0])


@pytest.mark.ranks
@pytest.mark.parametrize("zero", [2, 3])
def test_state_in_the_computers_memory_changes_nothing(tmp_path, zero):
    here = run(tmp_path, "here", 2, zero=zero)
    there = run(tmp_path, "there", 2, zero=zero, offload="cpu")
    assert jobs.losses(there) == pytest.approx(jobs.losses(here), abs=2e-5)


def test_metrics_say_whether_an_update_overflowed(tmp_path):
    job = run(tmp_path, "rows", max_steps=2)
    row, _ = [json.loads(line) for line in (job.path / "metrics.jsonl").read_text().splitlines()]
    assert row["overflow"] is False
