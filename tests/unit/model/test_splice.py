"""Image features among token embeddings."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmrun.errors import DataError
from vlmrun.model.splice import splice


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n_rows, length, width = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    flags = draw(st.lists(st.booleans(), min_size=n_rows * length, max_size=n_rows * length))
    mask = torch.tensor(flags).reshape(n_rows, length)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    embeds = torch.randn(n_rows, length, width, generator=generator)
    features = torch.randn(int(mask.sum()), width, generator=generator)
    return embeds, features, mask


@settings(max_examples=60, deadline=None)
@given(cases())
def test_every_feature_lands_in_its_place_and_nothing_else_changes(case):
    embeds, features, mask = case
    before = embeds.clone()
    result = splice(embeds, features, mask)
    upcoming = iter(features)
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            expected = next(upcoming) if mask[row, column] else before[row, column]
            assert torch.equal(result[row, column], expected)
    assert torch.equal(embeds, before), "out of place"


@settings(max_examples=60, deadline=None)
@given(cases())
def test_gradients_reach_features_and_spare_what_they_replaced(case):
    embeds, features, mask = case
    embeds.requires_grad_()
    features.requires_grad_()
    weight = torch.arange(embeds.numel(), dtype=torch.float32).reshape(embeds.shape) + 1
    (splice(embeds, features, mask) * weight).sum().backward()
    assert torch.equal(features.grad, weight[mask])
    assert torch.equal(embeds.grad, weight * ~mask.unsqueeze(-1))


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([-1, 1, 3]))
def test_another_number_of_features_is_an_error_that_names_both(case, surplus):
    embeds, features, mask = case
    n_rows = features.shape[0] + surplus
    if n_rows < 0:
        return
    with pytest.raises(DataError) as caught:
        splice(embeds, torch.zeros(n_rows, embeds.shape[-1]), mask)
    assert f"{n_rows} image tokens" in str(caught.value)
    assert f"{int(mask.sum())} image positions" in str(caught.value)


def test_features_may_come_by_image_and_in_another_type():
    embeds = torch.zeros(1, 4, 2, dtype=torch.bfloat16)
    features = torch.arange(8, dtype=torch.float32).reshape(2, 2, 2)
    result = splice(embeds, features, torch.ones(1, 4, dtype=torch.bool))
    assert result.dtype == torch.bfloat16
    assert torch.equal(result[0].float(), features.reshape(4, 2))
