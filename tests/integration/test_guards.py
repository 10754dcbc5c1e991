"""What watches over a training: empty batches, losses that are not finite, the tune proof, trackers."""

import json

import pytest

from tests.integration import ranks as forked
from tests.integration.jobs import execute, losses, make_job, rows, run, said, write_records
from tests.integration.ranks import RankError

pytestmark = pytest.mark.ranks

LOSS_ATOL = 1e-5  # fp32


def test_a_batch_without_supervised_tokens_is_reported_never_zero(tmp_path):
    """Unusable records keep their place and teach nothing."""
    write_records(tmp_path, 8, text_only="none")
    for index in range(8):
        (tmp_path / "images" / f"{index}.png").write_bytes(b"broken")
    tune = {"llm": "full", "tower": "freeze", "connector": "freeze"}
    job = run(tmp_path, "empty", on_error="skip", max_steps=2, tune=tune)
    assert [row["loss"] for row in rows(job)] == [None, None]
    assert [row["supervised_tokens"] for row in rows(job)] == [0, 0]
    assert "micro batches without supervised tokens teach nothing: r" in said(job)
    listed = [json.loads(line) for line in (job.path / "skipped.jsonl").read_text("utf-8").splitlines()]
    assert sorted(entry["id"] for entry in listed) == [f"r{index}" for index in range(8)]


@pytest.mark.parametrize("loss", ["token_mean", "micro_mean"])
def test_one_empty_micro_batch_among_others_adds_nothing(tmp_path, loss):
    write_records(tmp_path, 4, text_only="none")
    (tmp_path / "images" / "2.png").write_bytes(b"broken")
    common = {"on_error": "skip", "max_steps": 3, "epochs": 3.0, "micro_batch": 1, "loss": loss}
    plain = run(tmp_path, "plain", engine="plain", **common)
    two = run(tmp_path, "two", 2, zero=2, **common)
    assert all(value is not None and value > 0 for value in losses(plain))
    assert losses(two) == pytest.approx(losses(plain), abs=LOSS_ATOL)
    assert "step 1: micro batches without supervised tokens teach nothing: r2" in said(two)


def _poisoned(text):
    """A loss that becomes nan for one sample only."""
    from vlmrun.train import engine

    for member in (engine.PlainEngine, engine.DeepSpeedEngine):
        original = member.forward

        def forward(self, batch, original=original):
            logits = original(self, batch)
            return logits * float("nan") if "r3" in batch["ids"] else logits

        member.forward = forward
    execute(text)


@pytest.mark.parametrize(("engine", "n"), [("plain", 1), ("deepspeed", 2)])
def test_a_loss_that_is_not_finite_stops_with_the_samples(tmp_path, engine, n):
    job = make_job(tmp_path, "nan", engine=engine, ranks_per_node=n, micro_batch=1)
    with pytest.raises(RankError, match=r"(?s)VlmrunError.*the loss is not finite.*samples: r3\b"):
        forked.run(_poisoned, n, job.to_json(), group=n > 1)
    assert all(row["loss"] == row["loss"] for row in rows(job))


def _leak(text, kind):
    """Breaks a promise of `tune` behind the trainer's back."""
    import torch

    from vlmrun.train import engine

    for member in (engine.PlainEngine, engine.DeepSpeedEngine):
        original = member.step

        def step(self, factor, weight_decay=None, original=original):
            norm = original(self, factor)
            if kind == "frozen moves":
                with torch.no_grad():
                    next(self.vlm.tower.parameters()).add_(1e-3)
            return norm

        member.step = step
    if kind == "dead part":
        from vlmrun.model.vlm import VLM

        original_features = VLM.features
        VLM.features = lambda self, *given: original_features(self, *given).detach()
    execute(text)


@pytest.mark.parametrize(("engine", "n"), [("plain", 1), ("deepspeed", 2)])
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("frozen moves", "the tower is frozen but changed"),
        ("dead part", "the connector is to be trained but got no grad"),
    ],
)
def test_the_tune_proof_stops_the_run_and_names_the_part(tmp_path, engine, n, kind, text):
    job = make_job(tmp_path, "proof", engine=engine, ranks_per_node=n)
    with pytest.raises(RankError, match=f"VlmrunError.*{text}"):
        forked.run(_leak, n, job.to_json(), kind, group=n > 1)
    assert len(rows(job)) <= 2


def test_text_alone_cannot_train_a_connector(tmp_path):
    write_records(tmp_path, 8, text_only="all")
    job = make_job(tmp_path, "text")
    with pytest.raises(RankError, match=r"ConfigError.*connector cannot learn: no record has an image"):
        forked.run(execute, 1, job.to_json(), group=False)


def test_epochs_that_end_before_max_steps_are_told(tmp_path):
    job = run(tmp_path, "short", engine="plain", max_steps=13, epochs=0.5)
    assert len(rows(job)) == 3
    assert "max_steps 13 are not reached: 0.5 epoch(s) are 3; raise epochs" in said(job)
    assert "not reached" not in said(run(tmp_path, "long", engine="plain", max_steps=2, epochs=0.5))


def test_trackers_get_the_numbers_without_a_network(tmp_path):
    job = run(tmp_path, "tracked", tracking=["tensorboard", "wandb"])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(job.path / "logs" / "tensorboard"))
    events.Reload()
    found = [event.value for event in events.Scalars("train/loss")]
    assert found == pytest.approx(losses(job), rel=1e-6)
    offline = list((job.path / "logs" / "wandb").rglob("run-*.wandb"))
    assert len(offline) == 1
    assert offline[0].stat().st_size > 0
