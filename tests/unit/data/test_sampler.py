import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vlmrun.data.sampler import Schedule
from vlmrun.errors import ConfigError, DataError


def schedule(n_samples=20, *, global_batch=4, micro_batch=2, ranks=1, epochs=1.0, max_steps=None, seed=0):
    return Schedule(
        n_samples,
        global_batch=global_batch,
        micro_batch=micro_batch,
        ranks=ranks,
        epochs=epochs,
        max_steps=max_steps,
        seed=seed,
    )


@settings(max_examples=60, deadline=None)
@given(
    n_samples=st.integers(1, 200), global_batch=st.integers(1, 16), epochs=st.integers(1, 4), seed=st.integers(0, 2**40)
)
def test_every_sample_once_per_epoch(n_samples, global_batch, epochs, seed):
    assume(n_samples * epochs >= global_batch)
    found = schedule(n_samples, global_batch=global_batch, micro_batch=1, epochs=float(epochs), seed=seed)
    order = [index for step in range(found.steps) for index in found.indices(step)]
    assert len(order) + found.dropped == n_samples * epochs
    assert found.dropped < global_batch
    for epoch in range(epochs):
        part = order[epoch * n_samples : (epoch + 1) * n_samples]
        assert len(set(part)) == len(part)
        if len(part) == n_samples:
            assert sorted(part) == list(range(n_samples))


@settings(max_examples=60, deadline=None)
@given(micro=st.integers(1, 4), ranks=st.integers(1, 4), accumulation=st.integers(1, 4), seed=st.integers(0, 99))
def test_ranks_and_micro_batches_divide_the_batch_without_changing_it(micro, ranks, accumulation, seed):
    batch = micro * ranks * accumulation
    whole = schedule(150, global_batch=batch, micro_batch=batch, seed=seed)
    cut = schedule(150, global_batch=batch, micro_batch=micro, ranks=ranks, seed=seed)
    assert (cut.steps, cut.dropped, cut.accumulation) == (whole.steps, whole.dropped, accumulation)
    for step in range(whole.steps):
        assert cut.indices(step) == whole.indices(step) == whole.micro_batches(step, 0)[0]
        parts = [cut.micro_batches(step, rank) for rank in range(ranks)]
        in_slots = [index for slot in range(accumulation) for rank in range(ranks) for index in parts[rank][slot]]
        assert in_slots == whole.indices(step)


def test_a_step_can_be_asked_for_alone():
    straight = schedule(7, epochs=6.0)
    orders = [straight.indices(step) for step in range(straight.steps)]
    for step in (9, 2, 8, 0):
        assert schedule(7, epochs=6.0).indices(step) == orders[step]
    assert [straight.indices(step) for step in reversed(range(straight.steps))] == orders[::-1]


def test_the_order_is_fixed_for_all_time():
    # A change here breaks the resumption of every unfinished run.
    assert schedule(8, global_batch=8, seed=1).indices(0) == [2, 4, 7, 5, 0, 6, 3, 1]


def test_epochs_and_seeds_differ():
    found = schedule(40, global_batch=40, epochs=2.0)
    assert found.indices(0) != found.indices(1)
    assert found.indices(0) != schedule(40, global_batch=40, seed=1).indices(0)
    assert found.indices(0) != list(range(40))


def test_fractions_and_limits():
    assert schedule(20, epochs=0.5).steps == 2
    assert schedule(20, epochs=0.5).dropped == 2
    assert schedule(21, max_steps=3).steps == 3
    assert schedule(21, max_steps=3).dropped == 0
    assert schedule(21, max_steps=99).steps == 5
    assert schedule(21).epoch(5) == pytest.approx(20 / 21)


def test_only_two_epochs_are_kept_in_memory():
    found = schedule(10, global_batch=10, epochs=9.0)
    for step in range(found.steps):
        found.indices(step)
        assert len(found._orders) <= 2


def test_refusals():
    with pytest.raises(ConfigError, match="not a multiple of micro_batch 3 x 2 ranks"):
        schedule(global_batch=8, micro_batch=3, ranks=2)
    with pytest.raises(DataError, match="3 samples over 1 epochs do not fill one global batch of 4"):
        schedule(3)
    with pytest.raises(IndexError):
        schedule(4).indices(1)
