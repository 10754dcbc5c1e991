"""Methods that add up what models changed of a common base: base + scale * mix(sparse(model - base)).

Sources: task arithmetic arXiv:2212.04089, TIES arXiv:2306.01708, DARE arXiv:2311.03099, breadcrumbs arXiv:2312.06795,
DELLA arXiv:2406.11617, model stock arXiv:2403.19522
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vlmrun.checkpoints.methods import ranks
from vlmrun.checkpoints.methods.pieces import Source

Sparse = Callable[[list[Tensor]], list[Tensor]]

_NOTHING = 1e-8


def vectors(source: Source, weights: Sequence[float], method: Any) -> Iterator[Tensor]:
    """Task arithmetic, and with sparse changes or elected signs its relatives, as the method's fields say."""
    sparse = _sparsifier(source, method, len(weights))
    for piece in source:
        assert piece.base is not None
        mixed, share = _mix(sparse(piece.deltas()), weights, getattr(method, "sign", None))
        if method.normalize:
            mixed = mixed.div_(share.add_(share.abs().lt_(_NOTHING)))  # 1, where there is next to nothing
        yield mixed.mul_(method.scale).add_(piece.wide_base)


def model_stock(source: Source, weights: Sequence[float], method: Any) -> Iterator[Tensor]:
    """Between the base and the mean of the models, the nearer to the mean the more their changes agree.

    t = n c / (1 + (n - 1) c) with c the mean cosine between two changes of a tensor; the weights play no part.
    """
    n = len(weights)
    products = torch.zeros(n, n, dtype=torch.float64)
    for piece in source:
        stacked = torch.stack(piece.deltas()).double()
        products += stacked @ stacked.T
    lengths = products.diagonal().sqrt()
    cosines = (products / (lengths[:, None] * lengths).clamp(min=_NOTHING)).clamp(-1.0, 1.0)
    mean = (float(cosines.sum()) - float(cosines.diagonal().sum())) / (n * (n - 1))
    # Changes that cancel out leave the base.
    ratio = n * mean / (1 + (n - 1) * mean) if 1 + (n - 1) * mean > _NOTHING else 0.0
    for piece in source:
        assert piece.base is not None
        yield piece.base.float() + ratio * sum(piece.deltas(), torch.zeros(())) / n


def _mix(deltas: list[Tensor], weights: Sequence[float], sign: str | None) -> tuple[Tensor, Tensor]:
    """The weighted sum of the changes, which are used up, and the sum of the weights that went into it.

    With a sign elected for every element only changes of that sign count: `sum` elects by weight, `count` by number.
    """
    weighted = [delta.mul_(weight) for weight, delta in zip(weights, deltas, strict=True)]
    if sign is None:
        return _sum(weighted), torch.tensor(float(sum(weights)))
    ballots = _sum(weighted if sign == "sum" else [delta.sign() for delta in weighted])
    # 1 and -1: products and maxima in place take a fraction of the time of choosing element by element.
    elected = ballots.ge_(0).mul_(2).sub_(1)
    agreeing = [delta.mul_(elected).clamp_(min=0) for delta in weighted]
    mixed = _sum(agreeing).mul_(elected).add_(0.0)  # no -0
    share = _sum([delta.sign_().mul_(weight) for weight, delta in zip(weights, agreeing, strict=True)])
    return mixed, share


def _sum(terms: list[Tensor]) -> Tensor:
    """In their order; never -0."""
    total = terms[0] + 0.0
    for other in terms[1:]:
        total.add_(other)
    return total


def _sparsifier(source: Source, method: Any, n_models: int) -> Sparse:
    """What thins out the changes of one slice after another, having looked at the whole tensor where it must."""
    given = getattr(method, "density", None)
    if given is None:
        return lambda deltas: deltas
    densities = given if isinstance(given, list) else [given] * n_models
    if method.name in ("dare", "della"):
        return _dropped(source, densities, method)
    return _trimmed(source, densities, getattr(method, "gamma", 0.0))


def _dropped(source: Source, densities: Sequence[float], method: Any) -> Sparse:
    """Changes are dropped at random; the choice depends on seed, tensor and model, not on how the tensor is cut.

    DARE keeps every change with probability `density`. DELLA keeps the smallest of a row with `density - epsilon`, the
    largest with `density + epsilon`, and those between by their rank.
    """
    generators = [torch.Generator().manual_seed(_seed(method.seed, source.name, n)) for n in range(len(densities))]
    epsilon = getattr(method, "epsilon", 0.0)

    def thin(deltas: list[Tensor]) -> list[Tensor]:
        found = []
        for delta, density, generator in zip(deltas, densities, generators, strict=True):
            chance = density + epsilon * (2 * _ranks(delta, source.width) - 1) if epsilon else density
            kept = delta * (torch.rand(delta.shape, generator=generator) < chance)
            found.append(kept / chance if method.rescale else kept)
        return found

    return thin


def _ranks(delta: Tensor, width: int) -> Tensor:
    """Of every element the place of its magnitude in its row, from 0 (smallest) to 1."""
    order = delta.view(-1, width).abs().argsort(dim=1, stable=True).argsort(dim=1)
    return order.view(-1) / max(1, width - 1)


def _seed(number: int, name: str, model: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{number}/{name}/{model}".encode()).digest()[:8], "big") >> 1


def _trimmed(source: Source, densities: Sequence[float], gamma: float) -> Sparse:
    """Keeps of every change the share `density` of largest magnitude, after the share `gamma` of the very largest."""
    kept = [int(density * source.numel) for density in densities]
    outliers = [min(int(gamma * source.numel), source.numel - k) for k in kept]
    # The outer choice, and the inner one that is taken from it, if any.
    asked = [(top + k, top) if gamma else (k,) for top, k in zip(outliers, kept, strict=True)]
    choices = ranks.largest(lambda: (piece.deltas() for piece in source), asked)

    def thin(deltas: list[Tensor]) -> list[Tensor]:
        found = []
        for delta, (outer, *inner) in zip(deltas, choices, strict=True):
            dropped = [each.mask(delta) for each in inner]
            kept = outer.keep(delta)
            for each in dropped:
                kept.mul_(each.logical_not_())
            found.append(kept)
        return found

    return thin
