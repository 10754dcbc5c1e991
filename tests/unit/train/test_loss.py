import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmrun.ids import IGNORE
from vlmrun.model.loss import count, token_losses
from vlmrun.train.loss import Window


def _batch(seed, rows, length=6, vocabulary=11, share=0.5):
    made = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, vocabulary, generator=made, dtype=torch.float64).requires_grad_()
    labels = torch.randint(0, vocabulary, (rows, length), generator=made)
    labels[torch.rand(rows, length, generator=made) >= share] = IGNORE
    return logits, labels


def test_losses_are_the_shifted_cross_entropy():
    logits, labels = _batch(0, 3)
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
    )
    assert token_losses(logits, labels).sum().item() == pytest.approx(expected.item(), rel=1e-6)
    assert token_losses(logits, labels).numel() == count(labels)


def test_the_first_position_is_never_a_target():
    assert count(torch.tensor([[5, IGNORE], [IGNORE, 7]])) == 1


def test_bf16_logits_are_compared_in_fp32():
    logits, labels = _batch(1, 2)
    assert token_losses(logits.bfloat16(), labels).dtype == torch.float32


def _accumulated(kind, cuts, seed=3, rows=8, share=0.4):
    """Gradient and reported loss of 8 rows cut into slots, each (rank, micro batch) one slot."""
    logits, labels = _batch(seed, rows, share=share)
    pieces = list(zip(logits.split(cuts), labels.split(cuts), strict=True))
    counts = [count(piece) for _, piece in pieces]
    windows = [Window(kind, [n], sum(counts), len(pieces)) for n in counts]
    for window, (piece, piece_labels) in zip(windows, pieces, strict=True):
        # The engine divides by accumulation and averages over ranks: together by the number of slots.
        (window.add(token_losses(piece, piece_labels).sum(), count(piece_labels)) / len(pieces)).backward()
    reported = sum(float(w.total) for w in windows) / max(1, sum(w.n_units for w in windows))
    return logits.grad, reported


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1).map(lambda parts: parts[:8]), st.integers(0, 50))
def test_a_token_mean_does_not_depend_on_the_cut(parts, seed):
    """Whatever the micro batches are, empty ones included: the same loss and the same gradients."""
    cuts, left = [], 8
    for part in parts:
        cuts.append(min(part, left))
        left -= cuts[-1]
        if left == 0:
            break
    cuts += [left] if left else []
    whole, loss = _accumulated("token_mean", [8], seed)
    gradient, cut_loss = _accumulated("token_mean", cuts, seed)
    assert cut_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(gradient, whole, atol=1e-7, rtol=1e-5)  # losses are fp32


def test_micro_mean_is_the_mean_of_means():
    logits, labels = _batch(3, 8, share=0.4)
    means = [token_losses(a, b).mean().item() for a, b in zip(logits.split(2), labels.split(2), strict=True)]
    _, loss = _accumulated("micro_mean", [2, 2, 2, 2])
    assert loss == pytest.approx(sum(means) / 4, rel=1e-6)
    assert abs(loss - _accumulated("token_mean", [8])[1]) > 1e-3


@pytest.mark.parametrize("kind", ["token_mean", "micro_mean"])
def test_an_empty_micro_batch_adds_nothing_but_keeps_its_graph(kind):
    logits, _ = _batch(4, 2)
    window = Window(kind, [0, 3], 3, 1)
    loss = window.add(logits.sum() * 0.0, 0)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad.abs().max() == 0.0
    assert window.total == 0.0
    assert window.n_units == (3 if kind == "token_mean" else 1)
