"""What makes reading faster reaches the training: loader processes, kept pictures, drafts; and how long it waited."""

import json
import time

import numpy as np
import pytest
from PIL import Image

from tests.integration import ranks as forked
from tests.integration.jobs import execute, make_job, rows, run, write_records

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records with JPEGs that have more to them than a colour, eight times as large as the tower takes."""
    found = write_records(tmp_path_factory.mktemp("reading"), text_only="none")
    noise = np.random.default_rng(0)
    for path in (found / "images").iterdir():
        coarse = noise.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((128, 128)).save(path, format="JPEG")
    return found


@pytest.fixture(scope="module")
def exact(folder):
    return rows(run(folder, "exact"))


def _without_decoding(text):
    from vlmrun.data import encoder
    from vlmrun.train import loop

    def load(*_, **__):
        raise AssertionError("decoded again")

    seed = loop.seed

    def start(*arguments):
        encoder.load_image = load  # from the first step on: before it, pictures are looked at for other reasons
        seed(*arguments)

    loop.seed = start
    execute(text)


def test_pictures_are_decoded_once_for_all_runs(folder, exact):
    cache = folder / "cache"
    assert rows(run(folder, "keeps", image_cache=str(cache))) == exact
    assert len(list(cache.rglob("*.npz"))) == 24
    job = make_job(folder, "uses", max_steps=6, image_cache=str(cache))
    forked.run(_without_decoding, 1, job.to_json(), group=False)
    assert rows(job) == exact


def test_a_draft_trains_nearly_the_same(folder, exact):
    drafted = rows(run(folder, "draft", image_decode="draft"))
    mine, theirs = ([row["loss"] for row in found] for found in (drafted, exact))
    assert mine != theirs
    assert mine == pytest.approx(theirs, rel=0.02)


def _watching_the_loader(text):
    import torch.utils.data

    from vlmrun.data import loader

    class Watched(torch.utils.data.DataLoader):
        def __init__(self, *arguments, **named):
            assert (named["num_workers"], named["prefetch_factor"]) == (2, 3)
            super().__init__(*arguments, **named)

    loader.DataLoader = Watched
    execute(text)


def test_workers_and_prefetch_are_those_asked_for(folder, exact):
    job = make_job(folder, "workers", max_steps=6, workers=2, prefetch=3)
    forked.run(_watching_the_loader, 1, job.to_json(), group=False)
    assert rows(job) == exact


def _from_a_slow_disk(text):
    from vlmrun.data import encoder

    load = encoder.load_image

    def slowly(*arguments, **named):
        time.sleep(0.05)
        return load(*arguments, **named)

    encoder.load_image = slowly
    return execute(text)


def test_the_wait_for_data_is_logged_at_every_step_and_in_the_summary(folder):
    job = make_job(folder, "slow", max_steps=6)
    summary = forked.run(_from_a_slow_disk, 1, job.to_json(), group=False)[0]
    logged = [json.loads(line) for line in (job.path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert all(4 * 0.05 <= row["wait_seconds"] <= row["seconds"] for row in logged), "four pictures a step"
    shares = sum(row["wait_seconds"] for row in logged) / sum(row["seconds"] for row in logged)
    assert summary["data_wait"] == pytest.approx(shares, abs=1e-4)
    assert shares > 0.3
