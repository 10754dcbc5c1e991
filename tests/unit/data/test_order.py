"""Orders of an epoch: weights of sources, groups of like length, and that all is a function of seed and epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlmrun.data import order
from vlmrun.data.sampler import Schedule
from vlmrun.errors import DataError

COUNTS = st.lists(st.integers(1, 30), min_size=1, max_size=4)


@given(counts=COUNTS, seed=st.integers(0, 9), epoch=st.integers(0, 3), data=st.data())
def test_a_weight_is_the_passes_over_its_source(counts, seed, epoch, data):
    weights = data.draw(st.lists(st.floats(0.1, 3.0), min_size=len(counts), max_size=len(counts)))
    chosen = order.shuffled(counts, weights, seed)(epoch)
    assert len(chosen) == order.pool_size(counts, weights)
    first = 0
    for n, weight in zip(counts, weights, strict=True):
        times = np.bincount(chosen, minlength=sum(counts))[first : first + n]
        assert times.sum() == round(n * weight)
        assert set(times) <= {int(round(n * weight) // n), int(round(n * weight) // n) + 1}
        first += n


@given(counts=COUNTS, seed=st.integers(0, 9))
def test_without_weights_every_sample_comes_once(counts, seed):
    assert sorted(order.shuffled(counts, None, seed)(0)) == list(range(sum(counts)))


def test_the_half_of_a_source_changes_from_epoch_to_epoch():
    halves = [frozenset(order.pool([40], [0.5], 7, epoch).tolist()) for epoch in range(3)]
    assert len(set(halves)) == 3
    assert halves[0] == frozenset(order.pool([40], [0.5], 7, 0).tolist())


@given(
    lengths=st.lists(st.integers(-40, 40).filter(bool), min_size=1, max_size=80),
    batch=st.integers(1, 4),
    world=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_groups_lose_nothing_and_keep_modalities_apart(lengths, batch, world, seed):
    found = order.modality_groups(lengths, batch, world, torch.Generator().manual_seed(seed))
    assert sorted(found) == list(range(len(lengths)))
    n_pictures = sum(n > 0 for n in lengths)
    size = batch * world
    if 0 < n_pictures < len(lengths):
        last = [(n - 1) // size * size for n in (n_pictures, len(lengths) - n_pictures)]
        for start in range(0, sum(last), batch):
            assert len({lengths[i] > 0 for i in found[start : start + batch]}) == 1


def test_a_sample_without_words_is_refused():
    with pytest.raises(DataError, match="no words"):
        order.modality_groups([3, 0, -2], 1, 1, torch.Generator())


def test_a_schedule_asks_for_any_step_of_a_grouped_order_alone():
    lengths = [5, -3, 8, 2, -9, 4, 7, -1, 6, 3]
    grouped = order.by_length([10], [1.5], lengths, seed=3, micro_batch=2, world=2)
    sizes = {"global_batch": 4, "micro_batch": 2, "ranks": 2, "epochs": 3.0, "max_steps": None, "seed": 3}
    whole = Schedule(15, **sizes, order=grouped)
    steps = [whole.indices(step) for step in range(whole.steps)]
    fresh = Schedule(15, **sizes, order=order.by_length([10], [1.5], lengths, seed=3, micro_batch=2, world=2))
    assert fresh.indices(whole.steps - 1) == steps[-1]


def test_transformers_orders_depend_on_the_epoch_alone():
    for version in ("4.37", "4.41"):
        drawn = order.transformers_shuffled(20, seed=5, version=version)
        assert sorted(drawn(2)) == list(range(20))
        assert drawn(2) == order.transformers_shuffled(20, seed=5, version=version)(2) != drawn(1)
    assert order.transformers_shuffled(20, seed=5, version="4.37")(0) != drawn(0)
