"""Going on with another number of ranks: the same samples in the same order, and the same training up to rounding."""

import pytest

from tests.integration import ranks as forked
from tests.integration.jobs import execute, losses, make_job, rows, said
from tests.integration.ranks import RankError

pytestmark = pytest.mark.ranks

LORA = {"r": 4, "alpha": 8.0, "dropout": 0.0, "targets": "all-linear", "bias": "none", "modules_to_save": []}
BY_LORA = {"tune": {"llm": "lora", "tower": "freeze", "connector": "full"}, "lora": LORA}
QLORA = {
    "tune": {"llm": "qlora", "tower": "freeze", "connector": "full"},
    "lora": LORA,
    "quant": {"bits": 4, "type": "nf4", "double": True},
}
WAYS = {
    "ZeRO-0, 1 to 2": (1, 2, {"zero": 0}),
    "ZeRO-1 bf16, 2 to 1": (2, 1, {"zero": 1, "precision": "bf16"}),
    "ZeRO-2 lora, 1 to 2": (1, 2, {"zero": 2, **BY_LORA}),
    "ZeRO-2 qlora, 2 to 1": (2, 1, {"zero": 2, **QLORA}),
    "ZeRO-3 lora, 2 to 1": (2, 1, {"zero": 3, **BY_LORA}),
    "ZeRO-3 full bf16, 1 to 2": (1, 2, {"zero": 3, "precision": "bf16"}),
}


def begun(folder, name, n, **changes):
    """A job stopped after four of eight steps, as a kill would leave it."""
    job = make_job(folder, name, ranks_per_node=n, micro_batch=1, max_steps=8, save_steps=4, **changes)
    forked.run(execute, n, job.to_json(), group=n > 1)
    (job.path / "checkpoints" / "step-8").rename(folder / f"{name}-step-8")
    (job.path / "weights").rename(folder / f"{name}-weights")
    return job, rows(job)


@pytest.mark.parametrize("way", WAYS)
def test_another_number_of_ranks_goes_on(tmp_path, way):
    before, now, changes = WAYS[way]
    job, calm = begun(tmp_path, "job", before, **changes)
    other = make_job(tmp_path, "job", ranks_per_node=now, micro_batch=1, max_steps=8, save_steps=4, **changes)
    forked.run(execute, now, other.to_json(), group=now > 1)
    assert "goes on from step 4 of 8" in said(job)
    seen = ("step", "epoch", "supervised_tokens", "tokens", "samples", "lr")
    assert [[row[name] for name in seen] for row in rows(job)] == [[row[name] for name in seen] for row in calm]
    close = 2e-2 if changes.get("precision") == "bf16" else 1e-5
    assert losses(job) == pytest.approx([row["loss"] for row in calm], abs=close)
    assert not list((job.path / "checkpoints").glob(".tmp-*"))


def test_where_it_was_not_tried_it_is_refused(tmp_path):
    begun(tmp_path, "job", 1, zero=2)
    other = make_job(tmp_path, "job", ranks_per_node=2, micro_batch=1, max_steps=8, zero=2, offload="cpu")
    with pytest.raises(RankError, match=r"CheckpointError.*ranks: 1 then, 2 now"):
        forked.run(execute, 2, other.to_json())
