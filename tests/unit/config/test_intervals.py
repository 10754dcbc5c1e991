"""How often something happens: every N updates, a share of all of them, or every epoch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmrun.config import derived
from vlmrun.config.compose import compose
from vlmrun.config.validate import validate
from vlmrun.data.sampler import Schedule


def _schedule(n_samples, epochs, batch):
    return Schedule(n_samples, global_batch=batch, micro_batch=1, ranks=1, epochs=epochs, max_steps=None, seed=0)


def _due(every, schedule):
    steps = range(1, schedule.steps + 1)
    return [step for step in steps if derived.is_due(every, step, schedule.steps, schedule.epoch)]


@given(st.integers(4, 60), st.integers(1, 5), st.integers(1, 4))
def test_an_epoch_ends_with_the_update_that_finishes_it(n_samples, epochs, batch):
    schedule = _schedule(n_samples, float(epochs), batch)
    last = schedule.steps * batch
    ends = [-(-n_samples * epoch // batch) for epoch in range(1, epochs + 1) if n_samples * epoch <= last]
    assert _due("epoch", schedule) == ends


@given(st.integers(1, 12), st.integers(1, 400))
def test_a_share_comes_as_often_as_it_fits_and_ends_with_the_last_update(n, steps):
    schedule = _schedule(steps, 1.0, 1)
    due = _due(1 / n if n > 1 else 0.999999, schedule)
    if n > 1 and steps >= n:
        assert len(due) == n == derived.times(1 / n, steps, 1.0)
        assert due[-1] == steps


def test_a_number_is_of_updates():
    schedule = _schedule(10, 1.0, 1)
    assert _due(4, schedule) == [4, 8]
    assert derived.times(4, 10, 1.0) == 3, "and after the last"
    assert derived.times("epoch", 10, 2.5) == 3


@pytest.mark.parametrize("value", ["sometimes", "1.5", "0", "0.0", "true"])
def test_what_is_no_interval_is_refused_with_those_that_are(value):
    result = compose(["+recipe=smoke", f"stage.instruct.save_steps={value}"])
    _, (problem,) = validate(result.tree, result.problems)
    assert "is no interval" in problem.what
    assert problem.fix == "a number of updates (500), a share of all updates (0.25), or epoch"
