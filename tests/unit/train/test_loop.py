import json
import os
import signal

import pytest
import torch

from tests.integration.jobs import HARDWARE, STAGE
from tests.pico import pico_vlm
from vlmrun import heartbeat
from vlmrun.config.schema import HardwareConfig, Lora, TrainStage, Tune
from vlmrun.errors import LaunchError, VlmrunError
from vlmrun.model import tune
from vlmrun.train import loop, optim
from vlmrun.train.engine.plain import PlainEngine
from vlmrun.train.plan import Plan

FULL = Tune(llm="full", tower="freeze", connector="full")


def _batch(index, *, text_only=False, supervised=True):
    made = torch.Generator().manual_seed(index)
    text = torch.randint(5, 300, (2, 6), generator=made)
    ids = text if text_only else torch.cat([torch.full((2, 4), -200), text], 1)
    labels = torch.where(ids == -200, -100, ids) if supervised else torch.full_like(ids, -100)
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": torch.ones_like(ids, dtype=torch.bool),
        "pixels": torch.zeros(1, 3, 16, 16) if text_only else torch.randn(2, 3, 16, 16, generator=made),
        "ids": [f"s{index}a", f"s{index}b"],
        "uses": [],
        "skipped": [],
    }


class _Rows:
    def __init__(self):
        self.rows = []

    def track(self, row):
        self.rows.append(row)

    def close(self):
        pass


class _Saver:
    """Notes what is saved; what it saves has its name at once."""

    waits = works = False

    def __init__(self, saved):
        self.save = saved.append

    def finish(self):
        pass


class _Overflowing(PlainEngine):
    """fp16 as DeepSpeed does it: an update that does not fit is left out, and the scale halved."""

    scale = 2.0**16
    fits = 2.0**14

    def loss_scale(self):
        return self.scale

    def step(self, factor, weight_decay=None):
        if self.scale <= self.fits:
            return super().step(factor)
        self.scale /= 2
        return None


def _train(batches, *, done=0, wanted=FULL, saves=None, trackers=None, evaluate=None, kind=PlainEngine, **changes):
    stage = TrainStage.model_validate(
        STAGE | {"global_batch": 2, "engine": "plain", "tune": wanted.model_dump()} | changes
    )
    vlm = pico_vlm()
    tune.apply(vlm, wanted, stage.lora)
    engine = kind(vlm, optim.groups(vlm, stage.optim), stage, HardwareConfig.model_validate(HARDWARE))
    tracker = _Rows()
    saved = [] if saves is None else saves
    plan = Plan(
        name="train",
        stage=stage,
        batches=batches,
        steps=len(batches) + done,
        done=done,
        epoch=lambda step: step / 10,
        rate=lambda step: 1.0,
        saver=_Saver(saved),
        evaluate=evaluate or (lambda finished, loss: False),
        skipped=lambda found: None,
        trackers=[tracker, *(trackers or []), _Rows()],
    )
    try:
        loop.run(engine, plan)
    finally:
        _train.rows = tracker.rows
    return tracker.rows, saved, vlm


def _steps(n, **kind):
    return [(step, [_batch(step, **kind)]) for step in range(n)]


def test_rows_count_from_one_and_carry_everything():
    rows, saved, _ = _train(_steps(3))
    assert [row.step for row in rows] == [1, 2, 3]
    assert rows[0].supervised_tokens == 12  # six tokens of text in each of two rows, the first after the picture too
    assert rows[0].tokens == 20
    assert rows[0].samples == 2
    assert rows[0].lr == STAGE["optim"]["lr"]
    assert rows[0].epoch == 0.1
    assert saved == [3], "the last step is always saved"


def test_an_overflow_is_told_with_the_scale_it_happened_at(monkeypatch):
    heard = []
    monkeypatch.setattr(loop.log, "info", lambda text, *values: heard.append(text % values))
    rows, _, _ = _train(_steps(4), kind=_Overflowing)
    assert [(row.loss_scale, row.overflow) for row in rows] == [
        (65536.0, True), (32768.0, True), (16384.0, False), (16384.0, False),
    ]  # fmt: skip
    assert [line for line in heard if "overflowed" in line] == [
        f"step {step}: the gradients overflowed fp16 at loss scale {scale}; no update, the next ones are scaled less"
        for step, scale in ((1, 65536), (2, 32768))
    ]


def test_a_slow_tracker_is_no_part_of_a_step(monkeypatch):
    beats, seen = [], []
    monkeypatch.setattr(heartbeat, "beat", lambda phase, step=None: beats.append(phase))

    class Slow(_Rows):
        def track(self, row):
            seen.append(beats[-1])

    _train(_steps(2), trackers=[Slow()])
    assert seen == ["track", "track"]
    assert beats[-3:] == ["update", "track", "data"]


def test_a_run_that_only_overflows_stops():
    class Never(_Overflowing):
        fits = 0.0

    with pytest.raises(VlmrunError, match="25 updates in a row overflowed fp16"):
        _train(_steps(30), kind=Never)
    assert len(_train.rows) == 24
    assert _train(_steps(1))[0][0].loss_scale is None


def test_saves_come_at_save_steps_and_at_the_end():
    assert _train(_steps(5), save_steps=2)[1] == [2, 4, 5]


def test_the_best_model_is_saved_whenever_it_comes_and_a_run_that_goes_on_evaluates_what_was_not():
    asked = []
    saved = _train(_steps(5), save_steps=10, evaluate=lambda finished, _: asked.append(finished) or finished == 3)[1]
    assert saved == [3, 5]
    assert asked == [0, 1, 2, 3, 4, 5], "before the first update too, where that is asked for"
    asked.clear()
    _train(_steps(2), done=4, evaluate=lambda finished, _: asked.append(finished))
    assert asked[0] == 4, "before the first step"


def test_sigusr1_saves_and_goes_on():
    class Asking(list):
        def __iter__(self):
            for step, batch in super().__iter__():
                if step == 2:
                    os.kill(os.getpid(), signal.SIGUSR1)
                    os.kill(os.getpid(), signal.SIGUSR1)
                yield step, batch

    rows, saved, _ = _train(Asking(_steps(6)))
    assert saved == [3, 6]
    assert len(rows) == 6


def test_rows_show_the_rate_that_the_optimizer_had():
    """`optim.lr` is a rate that nothing has when the connector alone trains."""
    rows, _, _ = _train(_steps(2), wanted=Tune(llm="freeze", tower="freeze", connector="full"))
    assert rows[0].lrs == {"connector": STAGE["optim"]["connector_lr"]}
    assert rows[0].lr == STAGE["optim"]["connector_lr"] != STAGE["optim"]["lr"]
    rows, _, _ = _train(_steps(2))
    assert rows[0].lrs == {"connector": STAGE["optim"]["connector_lr"], "llm": STAGE["optim"]["lr"]}
    assert rows[0].lr == STAGE["optim"]["lr"]


def test_a_step_without_labels_has_no_loss_and_names_its_samples(monkeypatch):
    heard = []
    monkeypatch.setattr(loop.log, "warning", lambda text, *values: heard.append(text % values))
    rows, _, _ = _train([(0, [_batch(0)]), (1, [_batch(1, supervised=False)])])
    assert rows[0].loss is not None
    assert rows[1].loss is None
    assert heard == ["step 2: micro batches without supervised tokens teach nothing: s1a, s1b"]


def test_the_proof_waits_for_a_picture():
    """A text-only first batch gives the connector no gradient; that is no reason to stop."""
    rows, _, _ = _train([(0, [_batch(0, text_only=True)]), (1, [_batch(1)])])
    assert len(rows) == 2


def test_a_proof_that_could_not_be_made_is_told(monkeypatch):
    heard = []
    monkeypatch.setattr(loop.log, "warning", lambda text, *values: heard.append(text % values))
    _train(_steps(1, text_only=True))
    assert "tune proof could not be made" in heard[0]


def test_text_alone_proves_an_llm():
    monkey = Tune(llm="full", tower="freeze", connector="freeze")
    rows, _, _ = _train(_steps(2, text_only=True), wanted=monkey)
    assert len(rows) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_so(number):
    def batches():
        for step, micro in _steps(5):
            if step == 2:
                os.kill(os.getpid(), number)
            yield step, micro

    class Endless(list):
        __iter__ = lambda self: batches()  # noqa: E731

    before = signal.getsignal(number)
    saves = []
    with pytest.raises(LaunchError, match="stopped at step 3; checkpoint saved; the same command resumes there"):
        _train(Endless(_steps(5)), saves=saves)
    assert saves == [3]
    assert signal.getsignal(number) is before


def test_not_finite_stops_before_the_update_with_the_samples():
    bad = _batch(1)
    bad["pixels"] = bad["pixels"] * float("inf")
    with pytest.raises(VlmrunError, match=r"(?s)the loss is not finite.*samples: s1a, s1b"):
        _train([(0, [_batch(0)]), (1, [bad])])
    assert len(_train.rows) == 1


def test_seeds_differ_by_step_and_rank_and_repeat():
    def draw(*key):
        loop.seed(*key)
        return torch.rand(1).item()

    drawn = {key: draw(*key) for key in [(7, 0, 0), (7, 1, 0), (7, 0, 1), (8, 0, 0)]}
    assert len(set(drawn.values())) == 4
    assert all(draw(*key) == value for key, value in drawn.items())


def test_frozen_parts_are_bit_equal_afterwards():
    before = pico_vlm().tower.state_dict()
    _, _, vlm = _train(_steps(3))
    assert all(torch.equal(value, before[name]) for name, value in vlm.tower.state_dict().items())


def test_dropout_repeats_when_a_run_goes_on():
    """The first row of a resumed run draws what the same step of the whole run drew."""
    lora = Lora(r=4, alpha=8.0, dropout=0.5, targets="all-linear", bias="none", modules_to_save=[]).model_dump()
    wanted = Tune(llm="lora", tower="freeze", connector="freeze")
    first = _train(_steps(1), wanted=wanted, lora=lora)[0][0]
    torch.manual_seed(12345)
    again = _train(_steps(1), wanted=wanted, lora=lora)[0][0]
    assert json.dumps(first.loss) == json.dumps(again.loss)
