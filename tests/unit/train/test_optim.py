import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.integration.jobs import HARDWARE, STAGE
from tests.pico import pico_vlm
from vlmrun.config import derived
from vlmrun.config.schema import HardwareConfig, Optim, TrainStage
from vlmrun.train import optim
from vlmrun.train.engine.plain import PlainEngine


def _optim(**changes):
    return Optim.model_validate(STAGE["optim"] | changes)


@settings(deadline=None)
@given(
    st.sampled_from(["cosine", "linear", "constant"]),
    st.integers(1, 300),
    st.sampled_from([0.0, 0.01, 0.03, 0.1, 0.5, 1.0]),
)
def test_schedules_are_transformers_own(name, steps, ratio):
    from transformers import get_scheduler

    config = _optim(schedule=name, warmup_ratio=ratio)
    ours = optim.schedule(config, steps)
    adam = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs_name = "constant_with_warmup" if name == "constant" else name
    warmup = derived.warmup_steps(config, steps)
    theirs = get_scheduler(theirs_name, adam, num_warmup_steps=warmup, num_training_steps=steps)
    for done in range(steps):
        assert ours(done) == pytest.approx(theirs.lr_lambdas[0](done), abs=1e-12), done


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 300), st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
def test_a_lowest_rate_is_transformers_own_and_a_warm_up_may_be_told_in_steps(steps, warmup, lowest):
    from transformers import get_scheduler

    config = _optim(warmup_ratio=None, warmup_steps=warmup, min_lr_ratio=lowest)
    ours = optim.schedule(config, steps)
    adam = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(
        "cosine_with_min_lr",
        adam,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        scheduler_specific_kwargs={"min_lr_rate": lowest},
    )
    for done in range(steps):
        assert ours(done) == pytest.approx(theirs.lr_lambdas[0](done), abs=1e-12), done


def test_linear_ends_at_the_lowest_rate_and_constant_has_none():
    rate = optim.schedule(_optim(schedule="linear", warmup_ratio=0.0, min_lr_ratio=0.2), 10)
    assert [rate(done) for done in (0, 5, 10)] == pytest.approx([1.0, 0.6, 0.2])
    assert optim.schedule(_optim(schedule="constant", warmup_ratio=0.0), 10)(9) == 1.0


def test_the_first_update_of_a_warm_up_has_rate_zero():
    config = _optim(warmup_ratio=0.03)
    assert derived.warmup_steps(config, 101) == 4  # rounded up
    factor = optim.schedule(config, 101)
    assert [factor(done) for done in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert optim.schedule(_optim(warmup_ratio=0.0), 10)(0) == 1.0


def test_groups_are_part_by_decay_with_their_own_rates():
    vlm = pico_vlm()
    found = optim.groups(vlm, _optim(lr=1e-3, connector_lr=1e-4, tower_lr=1e-5, weight_decay=0.1))
    assert [(g.part, g.lr, g.weight_decay) for g in found] == [
        ("llm", 1e-3, 0.1),
        ("llm", 1e-3, 0.0),
        ("tower", 1e-5, 0.1),
        ("tower", 1e-5, 0.0),
        ("connector", 1e-4, 0.1),
        ("connector", 1e-4, 0.0),
    ]
    named = [name for group in found for name in group.names]
    assert sorted(named) == sorted(name for name, _ in vlm.named_parameters())
    assert len(named) == len(set(named))


def test_biases_and_norms_do_not_decay_and_everything_else_does():
    undecayed = {n for g in optim.groups(pico_vlm(), _optim(weight_decay=0.1)) if g.weight_decay == 0 for n in g.names}
    assert "llm.model.layers.0.input_layernorm.weight" in undecayed
    assert "llm.model.norm.weight" in undecayed
    assert "connector.layers.0.bias" in undecayed
    assert "tower.model.pre_layrnorm.weight" in undecayed
    assert not {name for name in undecayed if "proj.weight" in name or ("embed" in name and "norm" not in name)}


def test_frozen_parameters_are_in_no_group_and_empty_groups_are_left_out():
    vlm = pico_vlm()
    vlm.requires_grad_(False)
    vlm.connector.requires_grad_(True)
    found = optim.groups(vlm, _optim())
    assert {group.part for group in found} == {"connector"}
    assert len(found) == 2
    adam = optim.optimizer(found, _optim())
    assert sum(p.numel() for g in adam.param_groups for p in g["params"]) == 1600


def test_part_rates_default_to_lr():
    found = optim.groups(pico_vlm(), _optim(lr=7e-4, connector_lr=None))
    assert {group.lr for group in found} == {7e-4}


def test_a_parameter_of_no_part_is_a_bug():
    with pytest.raises(AssertionError, match="belongs to no part"):
        optim.part_of("head.weight")


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(0, 60), st.floats(0.2, 3.0), st.sampled_from([0.0, 1e-4, 1e-3]))
def test_polynomial_with_a_lowest_rate_is_transformers_own(steps, warmup, power, lowest):
    from transformers import get_polynomial_decay_schedule_with_warmup

    config = _optim(schedule="polynomial", warmup_ratio=None, warmup_steps=warmup, power=power, min_lr=lowest)
    adam = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    theirs = get_polynomial_decay_schedule_with_warmup(adam, warmup, steps, lr_end=lowest, power=power)
    ours = optim.schedule(config, steps)
    for done in range(steps):
        assert ours(done) == pytest.approx(theirs.lr_lambdas[0](done), abs=1e-12), done


@pytest.mark.parametrize("shape", ["linear", "cosine", "exponential", "one_minus_sqrt"])
def test_a_cooldown_is_the_end_of_a_constant_rate(shape):
    config = _optim(schedule="wsd", warmup_ratio=0.1, cooldown_ratio=0.25, cooldown_shape=shape, min_lr_ratio=0.1)
    rate = optim.schedule(config, 100)
    assert rate(5) == 0.5
    assert {rate(done) for done in range(10, 76)} == {1.0}
    falling = [rate(done) for done in range(75, 101)]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == pytest.approx(0.1)
    assert len({round(rate, 9) for rate in falling}) == len(falling)


def test_a_decay_that_ends_early_stays_at_the_lowest_rate():
    config = _optim(schedule="cosine", warmup_ratio=0.0, min_lr=_optim().lr / 10, decay_steps=20)
    rate = optim.schedule(config, 100)
    assert rate(19) > rate(20) == pytest.approx(0.1)
    assert [rate(done) for done in (21, 60, 99)] == pytest.approx([0.1] * 3)


def test_a_decay_may_end_after_a_share_of_all_updates():
    share, steps = _optim(warmup_ratio=0.0, decay_ratio=0.2), _optim(warmup_ratio=0.0, decay_steps=20)
    ours, theirs = optim.schedule(share, 100), optim.schedule(steps, 100)
    assert [ours(done) for done in range(100)] == [theirs(done) for done in range(100)]


def test_wsd_falls_in_the_last_tenth_unless_told_otherwise():
    """MiniCPM's own schedule, without counting steps."""
    rate = optim.schedule(_optim(schedule="wsd", warmup_ratio=0.1, min_lr_ratio=0.1), 200)
    rates = [rate(done) for done in range(201)]
    assert set(rates[20:181]) == {1.0}
    assert rates[181] < 1.0
    assert rates[200] == pytest.approx(0.1)


def test_a_weight_decay_that_grows_is_only_of_the_groups_that_decay():
    vlm, config = pico_vlm(), _optim(weight_decay=0.0, weight_decay_end=0.1, weight_decay_schedule="linear")
    found = optim.groups(vlm, config)
    assert {group.decays for group in found} == {True, False}
    engine = PlainEngine(vlm, found, TrainStage.model_validate(STAGE), HardwareConfig.model_validate(HARDWARE))
    decay = optim.weight_decay(config, 10)
    engine.step(0.0, decay(5))
    values = [described["weight_decay"] for described in engine._optimizer.param_groups]
    assert values == [pytest.approx(0.05) if group.decays else 0.0 for group in found]
