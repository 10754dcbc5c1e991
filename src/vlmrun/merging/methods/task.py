"""Methods that add up what models changed of a common base: base + scale * mix(sparse(model - base)).

Sources: task arithmetic arXiv:2212.04089, TIES arXiv:2306.01708, DARE arXiv:2311.03099, breadcrumbs arXiv:2312.06795,
DELLA arXiv:2406.11617, model stock arXiv:2403.19522
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmrun.merging.methods import top_k
from vlmrun.merging.methods.blocks import Source
from vlmrun.merging.methods.kernels import kernels
from vlmrun.merging.methods.numbers import BY_COUNT, BY_NOBODY, BY_SUM, Array

Thin = Callable[[Tensor], None]  # what is to be done with the changes of a slice

_NOTHING = 1e-8
_ALL = np.empty((0, 0, 3), np.int64)  # no choice among changes


def vectors(source: Source, weights: Sequence[float], method: Any) -> Iterator[Tensor]:
    """Task arithmetic, and with sparse changes or elected signs its relatives, as the method's fields say."""
    n_models = len(weights)
    by = {None: BY_NOBODY, "sum": BY_SUM, "count": BY_COUNT}[getattr(method, "sign", None)]
    shares, scale = np.array(weights, np.float64), np.float32(method.scale)
    given: Any = getattr(method, "density", None)
    densities: list[float] = given if isinstance(given, list) else [given] * n_models
    at_random = method.name in ("dare", "della")
    thin = _thinning(source, densities, method) if at_random else None
    choices = _ALL if at_random or given is None else _chosen(source, densities, getattr(method, "gamma", 0.0))
    for piece in source:
        (models, base), origin = piece.numbers, piece.numbers[1]
        if thin is not None:
            deltas = piece.deltas()
            thin(deltas)
            models, origin = list(deltas.numpy()), base[:0]
        mixed = torch.empty(base.size)
        kernels().mix(tuple(models), origin, choices, shares, by, method.normalize, scale, base, mixed.numpy())
        yield mixed


def model_stock(source: Source, weights: Sequence[float], method: Any) -> Iterator[Tensor]:
    """Between the base and the mean of the models, the nearer to the mean the more their changes agree.

    t = n c / (1 + (n - 1) c) with c the mean cosine between two changes of a tensor; the weights play no part.
    """
    n = len(weights)
    products = torch.zeros(n, n, dtype=torch.float64)
    for piece in source:
        stacked = piece.deltas().double()
        products += stacked @ stacked.T
    lengths = products.diagonal().sqrt()
    cosines = (products / (lengths[:, None] * lengths).clamp(min=_NOTHING)).clamp(-1.0, 1.0)
    mean = (float(cosines.sum()) - float(cosines.diagonal().sum())) / (n * (n - 1))
    # Changes that cancel out leave the base.
    ratio = n * mean / (1 + (n - 1) * mean) if 1 + (n - 1) * mean > _NOTHING else 0.0
    for piece in source:
        assert piece.base is not None
        middle = torch.zeros(piece.base.shape)
        for delta in piece.deltas():  # in their order, however a tensor is cut
            middle += delta
        yield piece.base.float().add(middle.mul_(ratio).div_(n))


def _thinning(source: Source, densities: Sequence[float], method: Any) -> Thin:
    """Changes are dropped at random; the choice depends on seed, tensor and model, not on how the tensor is cut.

    DARE keeps every change with probability `density`. DELLA keeps the smallest of a row with `density - epsilon`, the
    largest with `density + epsilon`, and those between by their rank.
    """
    generators = [torch.Generator().manual_seed(_seed(method.seed, source.name, n)) for n in range(len(densities))]
    epsilon = getattr(method, "epsilon", 0.0)

    def thin(deltas: Tensor) -> None:
        for delta, density, generator in zip(deltas, densities, generators, strict=True):
            chance = density + epsilon * (2 * _ranks(delta, source.width) - 1) if epsilon else density
            delta.mul_(torch.rand(delta.shape, generator=generator) < chance)
            if method.rescale:
                delta.div_(chance)

    return thin


def _ranks(delta: Tensor, width: int) -> Tensor:
    """Of every element the place of its magnitude in its row, from 0 (smallest) to 1."""
    order = delta.view(-1, width).abs().argsort(dim=1, stable=True).argsort(dim=1)
    return order.view(-1) / max(1, width - 1)


def _seed(number: int, name: str, model: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{number}/{name}/{model}".encode()).digest()[:8], "big") >> 1


def _chosen(source: Source, densities: Sequence[float], gamma: float) -> Array:
    """Of every change the share `density` of largest magnitude, after the share `gamma` of the very largest."""
    kept = [int(density * source.numel) for density in densities]
    outliers = [min(int(gamma * source.numel), source.numel - k) for k in kept]
    # Those that are kept, and of them those that are dropped again, if any.
    return top_k.largest(source, [(top + k, top) if gamma else (k,) for top, k in zip(outliers, kept, strict=True)])
