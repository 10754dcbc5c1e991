"""The loss in chunks and rows of several samples, through the whole trainer: the same training, cut another way."""

import numpy as np
import pytest

from tests.integration import ranks as forked
from tests.integration.jobs import execute, losses, make_job, rows, run, said, weights, write_records
from tests.integration.ranks import RankError
from tests.pico import pico_llm, pico_model_config
from vlmrun.config.schema import Packing
from vlmrun.data.order import shuffled
from vlmrun.data.packing import pack

pytestmark = pytest.mark.ranks

LOSS_ATOL, NORM_RTOL = 1e-5, 1e-4  # fp32, as in test_engines.py
LORA = {
    "tune": {"llm": "lora", "tower": "freeze", "connector": "full"},
    "lora": {"r": 4, "alpha": 8.0, "dropout": 0.0, "targets": "all-linear", "bias": "none", "modules_to_save": []},
}


def _alike(truth, found, atol=LOSS_ATOL):
    assert losses(found) == pytest.approx(losses(truth), abs=atol)
    norms = [[row["grad_norm"] for row in rows(job)] for job in (found, truth)]
    assert norms[0] == pytest.approx(norms[1], rel=max(NORM_RTOL, atol))


@pytest.fixture(scope="module", params=["own head, full", "tied head, full", "tied head, lora"])
def reference(request, tmp_path_factory):
    """Trained with full logits by plain PyTorch."""
    folder = tmp_path_factory.mktemp("head")
    head, tuned = request.param.split(", ")
    pico_llm(folder / "parts/llm", tie_word_embeddings=head == "tied head")
    changes = {} if tuned == "full" else LORA
    return folder, changes, run(folder, "truth", engine="plain", loss_head="plain", **changes)


@pytest.mark.parametrize("zero", [2, 3])
def test_chunks_train_as_full_logits_do(reference, zero):
    folder, changes, truth = reference
    found = run(folder, f"zero{zero}", 2, zero=zero, micro_batch=1, loss_chunk=2, **changes)
    _alike(truth, found)
    assert "full logits" not in said(found)


def test_bf16_in_chunks_is_bf16_with_full_logits(tmp_path):
    same = {"n": 2, "zero": 3, "precision": "bf16", "gradient_checkpointing": True}
    _alike(run(tmp_path, "plain", loss_head="plain", **same), run(tmp_path, "chunked", **same), atol=2e-2)


HOW = {"length": 128, "method": "best_fit", "window": 100}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("packing"), 24)


def _n_rows(job):
    """Rows of the first epoch, from the lengths the trainer kept."""
    lengths = np.load(job.path / "lengths.npy")
    order = shuffled([len(lengths)], None, job.stage.seed)(0)
    return len(pack(order.tolist(), lengths, job.stage.packing, job.stage.seed, 0))


@pytest.mark.parametrize("method", ["best_fit", "in_order"])
def test_a_token_mean_does_not_depend_on_the_packing(folder, method):
    """Each update is the whole data, alone or in rows of one length or another."""
    alone = run(folder, "alone", engine="plain", global_batch=24, micro_batch=24, epochs=4.0, max_steps=4)
    for length in (128, 200):
        how = HOW | {"length": length, "method": method}
        name = f"{method}{length}"
        probe = run(folder, f"{name}-probe", engine="plain", packing=how, global_batch=1, micro_batch=1, max_steps=2)
        n_rows = _n_rows(probe)
        assert 24 / n_rows > 2, "several samples must share a row"
        cut = {"global_batch": n_rows, "micro_batch": 1, "epochs": 4.0, "max_steps": 1}
        found = run(folder, name, engine="plain", packing=how, warmup_ratio=0.0, **cut)
        assert losses(found)[0] == pytest.approx(losses(alone)[0], abs=LOSS_ATOL)
        first, usual = rows(found)[0], rows(alone)[0]
        assert first["grad_norm"] == pytest.approx(usual["grad_norm"], rel=NORM_RTOL)
        for key in ("samples", "supervised_tokens", "tokens"):
            assert first[key] == usual[key]
        assert f"packing ({method}):" in said(found)


@pytest.mark.parametrize("zero", [2, 3])
def test_two_ranks_train_on_the_rows_of_one(folder, zero):
    cut = {"packing": HOW, "global_batch": 2, "epochs": 4.0}
    truth = run(folder, f"one{zero}", engine="plain", micro_batch=2, **cut)
    found = run(folder, f"two{zero}", 2, zero=zero, micro_batch=1, gradient_checkpointing=True, **cut)
    _alike(truth, found)
    assert [row["samples"] for row in rows(found)] == [row["samples"] for row in rows(truth)]
    assert (found.path / "lengths.npy").read_bytes() == (truth.path / "lengths.npy").read_bytes()


def _stopped(text, step):
    from vlmrun.train import loop

    original = loop.seed

    def seed(number, at, rank):
        if at == step:
            raise SystemExit("stopped")
        original(number, at, rank)

    loop.seed = seed
    execute(text)


def test_a_packed_run_goes_on_bit_for_bit(folder):
    cut = {"packing": HOW, "global_batch": 2, "epochs": 4.0, "max_steps": 7, "save_steps": 2, **LORA}
    cut["lora"] = LORA["lora"] | {"dropout": 0.2}
    truth = run(folder, "whole", **cut)
    job = make_job(folder, "stopped", **cut)
    with pytest.raises(RankError):
        forked.run(_stopped, 1, job.to_json(), 5, group=False)
    measured = (job.path / "lengths.npy").stat().st_mtime_ns
    forked.run(execute, 1, job.to_json(), group=False)
    assert "goes on from step 4 of 7" in said(job)
    assert (job.path / "lengths.npy").stat().st_mtime_ns == measured, "measured once"
    assert rows(job) == rows(truth)
    assert weights(job) == weights(truth)


def test_a_sample_longer_than_the_model_takes_is_cut_before_it_is_packed(folder):
    model = pico_model_config(folder / "parts", max_length=22)
    job = run(folder, "cut", engine="plain", model=model, packing=HOW, global_batch=1, micro_batch=1, max_steps=2)
    assert np.load(job.path / "lengths.npy").max() == 22


def test_the_schema_has_no_other_methods():
    with pytest.raises(ValueError, match="best_fit"):
        Packing.model_validate({**HOW, "method": "worst_fit"})
