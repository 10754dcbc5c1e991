"""The order in which megatron-energon reads shards, reproduced from its description.

Energon cuts the line of all samples into one piece for each loader process of each data-parallel rank, and each piece
into slices. A loader process keeps several slices open, draws the next sample from one of them, and pops samples from
a buffer. Everything is drawn from two torch generators seeded with the loader process's number, never with `--seed`.

The two generations that are in use differ in how the line is cut, how a slice is drawn and when an exhausted one is
noticed.

Source: megatron-energon 4.0.0 and 7.4.1 (with webdataset 0.2.110 and 1.0.2), as recorded; tests/parity replays it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vlmrun.errors import DataError

Version = Literal["energon4", "energon7"]


@dataclass(frozen=True)
class Loading:
    """How energon's loader is set up; what decides the order besides the shards.

    Args:
        ranks: data-parallel ranks.
        workers: loader processes of each; 0 loads in the rank itself and orders like 1.
        micro_batch: samples that one loader process gives at a time.
        slice_samples: samples of a slice, in which a shard is read, about (`max_samples_per_sequence`); None: whole.
        open_slices: slices of a loader process that are read in turn (`parallel_shard_iters`).
        buffer: samples that the next one is drawn from (`shuffle_buffer_size`); None: none, samples come as read.
        passes: slices are shuffled over this number of passes at once (`shuffle_over_epochs_multiplier`); None:
            not at all, -1: drawn with replacement.
        seed_offset: of the loader's seeds.
    """

    version: Version
    ranks: int
    workers: int
    micro_batch: int
    slice_samples: int | None = 100
    open_slices: int = 16
    buffer: int | None = 100
    passes: int | None = 1
    seed_offset: int = 0

    @property
    def processes(self) -> int:
        """Loader processes of all ranks."""
        return self.ranks * max(1, self.workers)


def rank_batches(
    counts: Sequence[int], loading: Loading, rank: int, unusable: Set[int] = frozenset()
) -> Iterator[list[int]]:
    """The micro batches of one data-parallel rank, without end, as places in the line of all samples.

    Args:
        counts: samples of each shard, in the order of the split.
        unusable: places whose samples the loader draws and leaves out; the next one fills the batch.

    Raises:
        DataError: when the rank gets no sample.
    """
    first = rank * max(1, loading.workers)
    cuts = pieces(sum(counts), loading)
    streams = []
    for process in range(first, first + max(1, loading.workers)):
        if any(place not in unusable for place in range(cuts[process], cuts[process + 1])):
            stream = _process(counts, loading, (cuts[process], cuts[process + 1]), process)
            streams.append(_batched((place for place in stream if place not in unusable), loading.micro_batch))
    if not streams:
        what = f"rank {rank} of {loading.ranks} gets none of {sum(counts)} samples"
        raise DataError(what, "stage.<name>.order.ranks", "fewer ranks and workers, or more data")
    # torch's loader asks its workers in turn; one without samples has ended before the first turn.
    for turn in itertools.cycle(streams):
        yield next(turn)


def pieces(n: int, loading: Loading) -> list[int]:
    """Where the piece of each loader process starts in the line of n samples, and the end of the last one."""
    processes = loading.processes
    if loading.version == "energon4":
        return [int(process * n / processes) for process in range(processes + 1)]
    least, more = divmod(n, processes)
    favored = set(bit_reversal(list(range(processes)))[:more])
    sizes = [least + (process in favored) for process in range(processes)]
    return [0, *itertools.accumulate(sizes)]


def bit_reversal(numbers: list[int]) -> list[int]:
    """Halves taken in turn, each of them ordered likewise: 0, n/2, n/4, ..."""
    if len(numbers) <= 2:
        return numbers
    middle = len(numbers) // 2
    halves = bit_reversal(numbers[:middle]), bit_reversal(numbers[middle:])
    mixed = itertools.zip_longest(*halves)
    return [number for pair in mixed for number in pair if number is not None]


def slices(counts: Sequence[int], piece: tuple[int, int], most: int | None) -> list[tuple[int, int]]:
    """A piece cut at the borders of shards, and its parts into nearly equal slices where they are long."""
    borders = [border for border in itertools.accumulate(counts) if piece[0] < border < piece[1]]
    found: list[tuple[int, int]] = []
    for start, stop in itertools.pairwise([piece[0], *borders, piece[1]]):
        length = stop - start
        n = max(round(length / most), 1) if most is not None and length > most * 1.5 else 1
        edges = [start + int(i * (length / n)) for i in range(n)] + [stop]
        found += [(a, b) for a, b in itertools.pairwise(edges) if a < b]
    return found


def _process(counts: Sequence[int], loading: Loading, piece: tuple[int, int], process: int) -> Iterator[int]:
    """The samples of one loader process, without end."""
    stream = _Slices(slices(counts, piece, loading.slice_samples), loading, process)
    return iter(stream) if loading.buffer is None else _buffered(iter(stream), loading, process)


def _generator(loading: Loading, process: int) -> Any:
    """A torch generator with the loader process's seed."""
    import torch

    digest = hashlib.sha1(f"{process},{loading.seed_offset}".encode(), usedforsecurity=False).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[-4:], "big"))


class _Slices:
    """Draws samples from the slices of one loader process, pass after pass."""

    def __init__(self, found: list[tuple[int, int]], loading: Loading, process: int) -> None:
        self._slices = found
        self._loading = loading
        self._generator = _generator(loading, process)
        self._waiting: list[int] = []  # slices of this pass that are not open yet, the next one last
        self._open: list[list[int]] = []  # next sample and end of each; both equal once it is exhausted
        self._sizes: Any = None  # samples of each open slice when it was opened; 0 for a closed one

    def __iter__(self) -> Iterator[int]:
        eager = self._loading.version == "energon7"
        while True:
            self._begin()
            while any(self._sizes):
                number = self._draw()
                place = self._open[number]
                if not eager and place[0] == place[1]:
                    self._replace(number)  # costs a draw that gives no sample
                    continue
                yield place[0]
                place[0] += 1
                if eager and place[0] == place[1]:
                    self._replace(number)

    def _begin(self) -> None:
        """Orders the slices of a pass and opens the first of them."""
        import torch

        loading, n = self._loading, len(self._slices)
        if loading.passes is None:
            order = list(range(n))
        elif loading.passes == -1:
            order = [self._below(n) for _ in range(loading.open_slices)]
        else:
            several = list(range(n)) * loading.passes
            order = [several[i] for i in torch.randperm(len(several), generator=self._generator).tolist()]
        self._waiting = order[::-1]
        self._open = [[0, 0] for _ in range(loading.open_slices)]
        self._sizes = np.zeros(loading.open_slices, dtype=np.float32)
        for number in range(min(len(order), loading.open_slices)):
            self._replace(number)

    def _replace(self, number: int) -> None:
        """Opens the next slice in the place of one, or closes the place."""
        if self._waiting:
            chosen = self._waiting.pop()
        elif self._loading.passes == -1:
            chosen = self._below(len(self._slices))
        else:
            self._sizes[number] = 0
            return
        start, stop = self._slices[chosen]
        self._open[number] = [start, stop]
        self._sizes[number] = stop - start

    def _draw(self) -> int:
        """An open slice, by its size when it was opened."""
        import torch

        if self._loading.open_slices == 1:
            return 0
        if self._loading.version == "energon4":
            sizes = torch.from_numpy(self._sizes)
            return int(torch.multinomial(sizes, 1, replacement=True, generator=self._generator).item())
        sums = torch.from_numpy(self._sizes).cumsum(0)
        value = torch.rand(1, generator=self._generator) * sums[-1]
        return int(torch.searchsorted(sums, value, right=True).item())

    def _below(self, n: int) -> int:
        return _below(n, self._generator)


def _below(n: int, generator: Any) -> int:
    import torch

    return int(torch.randint(0, n, (), generator=generator).item())


def _buffered(stream: Iterator[int], loading: Loading, process: int) -> Iterator[int]:
    """Filled once, then one is popped at random and another put in: passes mix where the data are few."""
    assert loading.buffer is not None
    generator = _generator(loading, process)
    held = list(itertools.islice(stream, loading.buffer))
    while True:
        yield held.pop(_below(len(held), generator))
        held.append(next(stream))


def _batched(stream: Iterator[int], size: int) -> Iterator[list[int]]:
    while batch := list(itertools.islice(stream, size)):
        yield batch
