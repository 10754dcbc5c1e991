"""Training on tar shards: the same as on the records they were made of, in energon's order on any ranks."""

import json

import pytest

from tests.integration import ranks as forked
from tests.integration.jobs import compare, execute, losses, make_job, rows, said, write_records
from vlmrun.data.prepare.write_shards import Layout, write
from vlmrun.data.shards import metadata

pytestmark = pytest.mark.ranks

PIPE = {"llm": "freeze", "tower": "freeze", "connector": "full"}
ORDER = {"name": "energon7", "ranks": 2, "workers": 2, "micro_batch": 1, "slice_samples": 3, "buffer": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records with pictures, and the shards made of them."""
    place = tmp_path_factory.mktemp("shards")
    write_records(place, 24, text_only="none")
    write(place / "data.json", place / "wds", Layout(max_count=5), images=place / "images",
          finish=lambda new: metadata.write(new, 7, [4, 1, 0]))  # fmt: skip
    return place


def trained(folder, name, n=1, *, data=None, **changes):
    """A finished job of six steps on the shards, or on what `data` changes of them."""
    job = make_job(folder, name, ranks_per_node=n, **({"max_steps": 6, "epochs": None, "tune": PIPE} | changes))
    shards = {"format": "energon", "annotations": str(folder / "wds"), "images": None}
    held = job.data["shapes"].model_copy(update=shards | {"split": "val"})
    used = job.data["shapes"].model_copy(update=shards | (data or {}))
    job = job.model_copy(update={"data": {"shapes": used, "held": held}})
    forked.run(execute, n, job.to_json(), group=n > 1)
    return job


def test_shards_train_like_the_records_they_were_made_of(folder):
    records = {"format": "llava", "annotations": str(folder / "data.json"), "images": str(folder / "images")}
    wanted = trained(folder, "records", data=records, image_aspect="pad_after")
    assert rows(wanted) == rows(trained(folder, "shards", data={"format": "wds"}, image_aspect="pad_after"))


def test_energons_order_is_the_same_on_other_ranks_and_goes_on_where_it_stopped(folder):
    asked = {"order": ORDER, "eval": {"steps": 3, "data": ["held"], "max_samples": 3, "generate": 0,
             "max_new_tokens": 1}}  # fmt: skip
    alone = trained(folder, "alone", engine="plain", **asked)
    compare(alone, trained(folder, "two", 2, micro_batch=1, zero=2, **asked))
    assert losses(alone) != losses(trained(folder, "ours", engine="plain"))
    stopped = trained(folder, "stopped", engine="plain", max_steps=6, save_steps=4, **asked)
    whole = rows(stopped)
    for checkpoint in (stopped.path / "checkpoints").iterdir():
        if not checkpoint.name.endswith("-4"):
            checkpoint.rename(checkpoint.with_name("gone"))
    (stopped.path / "checkpoints" / "gone").rename(folder / "gone")
    trained(folder, "stopped", engine="plain", max_steps=6, save_steps=4, **asked)
    assert rows(stopped) == whole
    assert "step 4 of 6" in said(stopped)
    scores = [json.loads(line) for line in (alone.path / "eval.jsonl").read_text("utf-8").splitlines()]
    assert [score["step"] for score in scores] == [3, 6]


def test_units_of_blocks_train_alike_where_weights_are_sharded(folder):
    whole = {"llm": "full", "tower": "freeze", "connector": "full"}
    wanted = trained(folder, "blocks", engine="plain", tune=whole)
    for zero in (2, 3):
        found = trained(folder, f"units-{zero}", 2, micro_batch=1, zero=zero, tune=whole, gradient_checkpointing=2)
        compare(wanted, found)


def test_a_picture_that_cannot_be_read_keeps_its_place_and_is_listed(folder):
    place = folder / "damaged"
    write_records(place, 12, text_only="none")
    (place / "images" / "3.png").write_bytes(b"no image")
    write(place / "data.json", place / "wds", Layout(), images=place / "images",
          finish=lambda new: metadata.write(new, 4, [1, 0, 0]))  # fmt: skip
    job = trained(folder, "damaged-run", data={"annotations": str(place / "wds"), "on_error": "skip"})
    (line,) = (job.path / "skipped.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["id"] == "r3"
