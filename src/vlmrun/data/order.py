"""The order of an epoch: shuffled, or in batches of like length with images and text apart.

Every order is a pure function of the seed and the epoch. torch is imported where it is needed: the front half looks at
this package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlmrun.errors import DataError

Numbers = Sequence[int] | np.ndarray
Order = Callable[[int], Numbers]  # epoch -> sample numbers


def pool_size(counts: Sequence[int], weights: Sequence[float] | None) -> int:
    """Samples of one epoch: each source's count times its weight, rounded to whole samples."""
    return sum(counts) if weights is None else sum(_wanted(n, w) for n, w in zip(counts, weights, strict=True))


def pool(counts: Sequence[int], weights: Sequence[float] | None, seed: int, epoch: int) -> np.ndarray:
    """Sample numbers of one epoch, in no particular order: a weight of 2.5 is all of a source twice and a half of it.

    The half is drawn again in every epoch.
    """
    if weights is None:
        return np.arange(sum(counts))
    parts, first = [], 0
    for source, (n, weight) in enumerate(zip(counts, weights, strict=True)):
        whole, rest = divmod(_wanted(n, weight), n)
        parts += [np.arange(n)] * whole + [np.sort(permutation(n, seed, epoch, source)[:rest])]
        parts[-whole - 1 :] = [part + first for part in parts[-whole - 1 :]]
        first += n
    return np.concatenate(parts)


def permutation(n: int, *seeds: int) -> np.ndarray:
    """A seeded permutation.

    Sorting raw bits: numpy promises bit generators' streams across versions, but not Generator.permutation's.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seeds))
    return np.argsort(bits.random_raw(n), kind="stable")


def shuffled(counts: Sequence[int], weights: Sequence[float] | None, seed: int) -> Order:
    """Seeded permutations, the same for any ranks and micro batch."""

    def order(epoch: int) -> np.ndarray:
        chosen = pool(counts, weights, seed, epoch)
        mixed: np.ndarray = chosen[permutation(len(chosen), seed, epoch)]
        return mixed

    return order


def by_length(
    counts: Sequence[int],
    weights: Sequence[float] | None,
    lengths: Sequence[int],
    *,
    seed: int,
    micro_batch: int,
    world: int,
) -> Order:
    """Batches of like length, images and text apart (`modality_groups`).

    Args:
        lengths: of every sample; negative for text alone.
        world: micro batches of one update, over all ranks.
    """
    known = np.asarray(lengths)

    def order(epoch: int) -> np.ndarray:
        import torch

        chosen = pool(counts, weights, seed, epoch)
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]))
        return chosen[modality_groups(known[chosen].tolist(), micro_batch, world, generator)]

    return order


def transformers_shuffled(n: int, *, seed: int, version: str) -> Order:
    """What the Trainer of transformers 4.37 (with accelerate 0.21) or 4.41 (with 0.30) draws in one process.

    The older takes a fresh seed for every epoch from the global generator, of which the loader has drawn one number
    before; the newer seeds every epoch with its number added. Equal as long as nothing else draws from the global
    generator, as dropout would.

    Source: the orders recorded from LLaVA and Bunny; tests/parity/test_training.py replays them.
    """
    import torch

    def order(epoch: int) -> list[int]:
        if version == "4.41":
            numbers = torch.randperm(n, generator=torch.Generator().manual_seed(seed + epoch))
        else:
            stream = torch.Generator().manual_seed(seed)
            for _ in range(2 * epoch + 1):
                _draw(stream)
            numbers = torch.randperm(n, generator=torch.Generator().manual_seed(_draw(stream)))
        found: list[int] = numbers.tolist()
        return found

    return order


def transformers_by_length(lengths: Sequence[int], *, seed: int, micro_batch: int, world: int) -> Order:
    """The same Trainers with LLaVA's grouped sampler, which takes all its numbers from the global generator."""
    import torch

    def order(epoch: int) -> list[int]:
        stream = torch.Generator().manual_seed(seed)
        found: list[int] = []
        for _ in range(epoch + 1):
            _draw(stream)
            found = modality_groups(lengths, micro_batch, world, stream)
        return found

    return order


def _draw(generator: Any) -> int:
    import torch

    return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())


def modality_groups(lengths: Sequence[int], batch: int, world: int, generator: Any) -> list[int]:
    """Positions in an order whose micro batches are of like length and of one modality.

    Megabatches (`batch` x `world` samples) of images and of text are mixed with each other; the last one of each kind
    is set aside, whole or not, and both come at the end, sorted.

    Args:
        lengths: positive with an image, negative without.
        generator: a torch.Generator; None is torch's global one.

    Raises:
        DataError: for a length of 0.

    Source:
        haotian-liu/LLaVA@c121f04:llava/train/llava_trainer.py, get_modality_length_grouped_indices.
    """
    import torch

    if 0 in lengths:
        raise DataError("a sample has no words: it cannot be put with others of its length", fix="give it text")
    kinds = [[i for i, n in enumerate(lengths) if n > 0], [i for i, n in enumerate(lengths) if n < 0]]
    if not kinds[0] or not kinds[1]:
        return length_groups(lengths, batch, world, generator)
    size = batch * world
    mixed: list[list[int]] = []
    leftover: list[int] = []
    for members in kinds:
        order = length_groups([abs(lengths[i]) for i in members], batch, world, generator)
        chunks = [[members[i] for i in order[at : at + size]] for at in range(0, len(order), size)]
        leftover += chunks.pop()
        mixed += chunks
    places = torch.randperm(len(mixed), generator=generator).tolist()
    return [i for place in places for i in mixed[place]] + sorted(leftover)


def length_groups(lengths: Sequence[int], batch: int, world: int, generator: Any) -> list[int]:
    """Random megabatches, each from long to short, dealt to the micro batches of an update."""
    import torch

    drawn = torch.randperm(len(lengths), generator=generator).tolist()
    size = batch * world
    order: list[int] = []
    for at in range(0, len(drawn), size):
        ranked = sorted(drawn[at : at + size], key=lambda i: lengths[i], reverse=True)
        for part in _even_parts(ranked, lengths, world):
            order += part
    return order


def _even_parts(ranked: Sequence[int], lengths: Sequence[int], n_parts: int) -> list[list[int]]:
    """Deals samples to parts of one size and of like total length; every n-th to a part when they do not divide."""
    if len(ranked) % n_parts:
        return [list(ranked[start::n_parts]) for start in range(n_parts)]
    full = len(ranked) // n_parts
    parts: list[list[int]] = [[] for _ in range(n_parts)]
    totals = [0.0] * n_parts
    for index in ranked:
        least = totals.index(min(totals))
        parts[least].append(index)
        totals[least] = math.inf if len(parts[least]) == full else totals[least] + lengths[index]
    return parts


def _wanted(n: int, weight: float) -> int:
    return round(n * weight)
