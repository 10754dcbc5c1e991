"""A qlora stage from start to merge, on one rank and ZeRO-2: it learns, resumes, answers, and merges as trained."""

import json

import pytest
import torch

from tests.integration import ranks as forked
from tests.integration.jobs import execute, make_job, rows, said, weights
from tests.integration.ranks import RankError
from tests.integration.test_resume import _killed_at
from tests.pico import WIDE, pico_llm, pico_model_config
from tests.unit.models import merging
from vlmrun.formats.load import describe, load
from vlmrun.merging.merge import merge
from vlmrun.weights.reader import Reader

pytestmark = pytest.mark.ranks

CHANGES = {
    "max_steps": 9,
    "save_steps": 3,
    "tune": {"llm": "qlora", "tower": "freeze", "connector": "full"},
    "quant": {"bits": 4, "type": "nf4", "double": True},
    "lora": {"r": 4, "alpha": 8.0, "dropout": 0.2, "targets": "all-linear", "bias": "none", "modules_to_save": []},
    "gradient_checkpointing": True,
}
LOSS_ATOL = 1e-5  # fp32, plain PyTorch against ZeRO-2 on one rank
LOGITS_ATOL = 1e-4  # fp32: W x + s B (A x) against (W + s B A) x, logits of size 1 to 10


def _job(folder, name, **changes):
    parts = folder / "parts"
    if not (parts / "llm").is_dir():
        pico_llm(parts / "llm", **WIDE)
    return make_job(folder, name, model=pico_model_config(parts), **(CHANGES | changes))


def _finish(job):
    return forked.run(execute, 1, job.to_json(), group=False)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qlora")
    job = _job(folder, "undisturbed")
    summary = _finish(job)
    assert summary["engine"] == "ZeRO-2"
    return folder, job


def _logits(folder):
    loaded = load(folder, dtype=torch.float32, attention="sdpa")
    ids = torch.tensor([[0, 7, *[-200] * loaded.vlm.image_tokens(None), 9, 10]])
    size = loaded.vlm.image_size
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return loaded.vlm(ids, torch.ones_like(ids), pixels).logits


def test_it_learns_and_leaves_adapter_connector_and_the_whole_llm(trained):
    folder, job = trained
    losses = [row["loss"] for row in rows(job)]
    assert losses[-1] < losses[0] - 0.1
    assert "qlora" in said(job)
    assert describe(job.path)["quantized"] == {"bits": 4, "type": "nf4", "double": True, "head": False}
    kept, source = Reader(job.path / "weights/llm"), Reader(folder / "parts/llm")
    assert all(torch.equal(kept.get(name), source.get(name)) for name in source.names())
    assert sorted(path.name for path in (job.path / "weights").iterdir()) == [
        "adapter", "connector", "llm", "model.json", "tower",
    ]  # fmt: skip


def test_the_plain_engine_learns_the_same(trained):
    folder, job = trained
    plain = _job(folder, "plain", engine="plain")
    _finish(plain)
    ours, theirs = ([row["loss"] for row in rows(one)] for one in (job, plain))
    assert ours == pytest.approx(theirs, abs=LOSS_ATOL)


def test_killed_and_started_again_it_ends_where_it_would_have(trained):
    folder, job = trained
    again = _job(folder, "killed")
    with pytest.raises(RankError, match="died without a word"):
        forked.run(_killed_at, 1, again.to_json(), "before writing", 0, group=False)
    _finish(again)
    assert "goes on from step 3 of 9" in said(again)
    assert rows(again) == rows(job)
    assert weights(again) == weights(job)


def test_the_merged_model_is_the_one_that_was_trained(trained, tmp_path):
    _, job = trained
    merge(merging(), [job.path], tmp_path / "merged/weights")
    adapted, merged = _logits(job.path), _logits(tmp_path / "merged")
    assert torch.allclose(adapted, merged, atol=LOGITS_ATOL)
    config = json.loads((tmp_path / "merged/weights/llm/config.json").read_text())
    assert "quantization_config" not in config


def test_bf16_on_two_ranks(tmp_path):
    job = _job(tmp_path, "two", precision="bf16", ranks_per_node=2, max_steps=3, micro_batch=1)
    forked.run(execute, 2, job.to_json())
    losses = [row["loss"] for row in rows(job)]
    assert len(losses) == 3
    assert all(loss > 0 for loss in losses)
    assert describe(job.path)["dtype"] == "bf16"
