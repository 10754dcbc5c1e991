"""One update of a real (pico) model, its global batch cut every way into micro batches, accumulation and ranks."""

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.pico import IMAGE_SIZE, N_PATCHES, pico_vlm
from vlmrun.ids import IGNORE, IMAGE_TOKEN
from vlmrun.model.loss import count
from vlmrun.train.loss import Window

N = 6
CUTS = [(micro, ranks) for micro in (1, 2, 3, 6) for ranks in (1, 2, 3, 6) if N % (micro * ranks) == 0]


def _collated(samples):
    """Samples (pictures, supervised tokens, other tokens) as the collator puts them together."""
    rows = []
    for number, (n_images, n_supervised, n_other) in samples:
        ids = [0, *[IMAGE_TOKEN] * (N_PATCHES * n_images), *range(5, 5 + n_other), *range(30, 30 + n_supervised)]
        labels = [IGNORE] * (len(ids) - n_supervised) + [(number * 7 + i) % 300 for i in range(n_supervised)]
        rows.append((ids, labels, n_images))
    length = max(len(ids) for ids, _, _ in rows)
    pixels = [
        torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(number * 10 + i))
        for number, (n_images, _, _) in samples
        for i in range(n_images)
    ]
    return {
        "input_ids": torch.tensor([ids + [1] * (length - len(ids)) for ids, _, _ in rows]),
        "labels": torch.tensor([labels + [IGNORE] * (length - len(labels)) for _, labels, _ in rows]),
        "attention_mask": torch.tensor([[True] * len(ids) + [False] * (length - len(ids)) for ids, _, _ in rows]),
        "pixels": torch.stack(pixels) if pixels else torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE),
    }


def _update(vlm, samples, micro, ranks):
    """Reported loss and all gradients, as an engine accumulates over micro batches and averages over ranks."""
    numbered = list(enumerate(samples))
    slots = [numbered[start : start + micro] for start in range(0, N, micro)]
    accumulation = len(slots) // ranks
    batches = [[_collated(slot) for slot in slots[rank::ranks]] for rank in range(ranks)]
    counts = [[count(batch["labels"]) for batch in own] for own in batches]
    vlm.zero_grad(set_to_none=True)
    total = units = 0.0
    for own, mine in zip(batches, counts, strict=True):
        window = Window("token_mean", mine, sum(map(sum, counts)), ranks)
        for batch, n_supervised in zip(own, mine, strict=True):
            value = window.add(vlm(**batch).loss_sum, n_supervised)
            (value / accumulation / ranks).backward()
        total, units = total + float(window.total), units + window.n_units
    return total / units, {name: p.grad for name, p in vlm.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def vlm():
    return pico_vlm(seed=3).train()


SAMPLE = st.tuples(st.sampled_from([0, 1, 3]), st.integers(0, 4), st.integers(1, 5))


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SAMPLE, min_size=N, max_size=N), st.sampled_from(CUTS[1:]))
@example([(0, 2, 1), (3, 1, 2), (1, 0, 1), (0, 4, 5), (1, 1, 1), (0, 0, 3)], (1, 6))
@example([(0, 2, 1)] * N, (2, 3))
def test_loss_and_gradients_do_not_depend_on_the_cut(vlm, samples, cut):
    if not any(n for _, n, _ in samples):
        return  # nothing is supervised: the loop reports no loss
    loss, gradients = _update(vlm, samples, N, 1)
    cut_loss, cut_gradients = _update(vlm, samples, *cut)
    assert cut_loss == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == cut_gradients.keys(), "every rank's backward must reach the same parameters"
    for name, gradient in gradients.items():
        torch.testing.assert_close(cut_gradients[name], gradient, atol=2e-5, rtol=1e-3, msg=name)


def test_the_blank_picture_changes_no_bit(vlm):
    batch = _collated([(0, (0, 3, 4)), (1, (0, 2, 1))])
    loss, with_blank = vlm(**batch).loss_sum, {}
    vlm.zero_grad(set_to_none=True)
    loss.backward()
    with_blank = {name: p.grad.clone() for name, p in vlm.named_parameters() if p.grad is not None}
    vlm.zero_grad(set_to_none=True)
    embedding = vlm.llm.get_input_embeddings()
    vlm.embed = lambda ids, pixels, layouts: embedding(ids)
    try:
        alone = vlm(**batch).loss_sum
        alone.backward()
    finally:
        del vlm.embed
    assert loss.item() == alone.item()
    for name, gradient in with_blank.items():
        if name.startswith("llm."):
            assert torch.equal(gradient, vlm.get_parameter(name).grad), name
        else:
            assert not gradient.any(), name
    assert any(name.startswith("tower.") for name in with_blank), "the tower is in the graph all the same"
