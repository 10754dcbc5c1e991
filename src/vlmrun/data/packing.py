"""Several samples in one row: which, as a pure function of their lengths, the seed and the epoch.

A batch then counts rows: `micro_batch` rows a forward pass, `global_batch` rows an update. `epochs` still counts passes
over the samples. Like every order this one knows nothing of ranks, so a run resumes anywhere from a step number alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from vlmrun.config.schema import Packing
from vlmrun.data.order import Numbers, Order, permutation
from vlmrun.data.sampler import Schedule
from vlmrun.errors import DataError

Row = list[int]  # sample numbers
_OF_ROWS = 7  # sets the random numbers for rows apart from those for samples


class PackedSchedule(Schedule):
    """Which samples share each row of each step, rank and micro batch: `micro_batches` holds rows, not samples.

    Args:
        lengths: tokens of every sample.
        order: of the samples of each epoch.
        n_samples: of one epoch.
        epochs: may be a fraction; the last epoch then has its first `floor(n_samples * fraction)` samples.
        cut: as `Schedule` takes them; batches count rows.

    Attributes:
        dropped: samples of rows at the end that fill no global batch.
        fill: share of the positions of all rows that hold a token.

    Raises:
        ConfigError, DataError: as `Schedule`.
    """

    def __init__(
        self,
        lengths: Numbers,
        order: Order,
        packing: Packing,
        *,
        n_samples: int,
        epochs: float,
        **cut: Any,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.packing = packing
        self._samples = order
        self._per_epoch = n_samples
        self._used = [min(n_samples, int(n_samples * epochs) - n) for n in range(0, int(n_samples * epochs), n_samples)]
        self.seed = cut["seed"]
        self._kept: dict[int, list[Row]] = {}
        sizes, n_tokens = [], 0
        for epoch in range(len(self._used)):
            sizes.append(len(self._rows(epoch)))
            n_tokens += sum(int(self.lengths[row].sum()) for row in self._rows(epoch))
        self._starts = [0, *accumulate(sizes)]
        if self._starts[-1] < cut["global_batch"]:
            raise DataError(
                f"{sum(self._used)} samples make {self._starts[-1]} rows of {packing.length} tokens, which do not fill "
                f"one global batch of {cut['global_batch']} rows",
                "stage.*.global_batch",
                f"use a global batch of at most {self._starts[-1]}: under packing it counts rows, not samples",
            )
        self.fill = n_tokens / (self._starts[-1] * packing.length)
        super().__init__(self._starts[-1], epochs=1.0, **cut)
        self.dropped = sum(len(self._row(n)) for n in range(self.n_samples - self.dropped, self.n_samples))

    def epoch(self, step: int) -> float:
        """Passes over the data finished when `step` steps are done."""
        n_rows = min(step * self.global_batch, self.n_samples)
        epoch = min(bisect_right(self._starts, n_rows), len(self._used)) - 1
        share = (n_rows - self._starts[epoch]) / (self._starts[epoch + 1] - self._starts[epoch])
        return epoch + share * self._used[epoch] / self._per_epoch

    def told(self) -> str:
        """The packing in a line for the log."""
        n_samples, n_rows = sum(self._used), self.n_samples
        return (
            f"packing ({self.packing.method}): {n_samples} samples in {n_rows} rows of {self.packing.length} tokens, "
            f"{n_samples / n_rows:.1f} in each; {1 - self.fill:.1%} of the positions hold none"
        )

    def _sample(self, position: int) -> Any:
        return self._row(position)

    def _row(self, number: int) -> Row:
        epoch = bisect_right(self._starts, number) - 1
        return self._rows(epoch)[number - self._starts[epoch]]

    def _rows(self, epoch: int) -> list[Row]:
        if epoch not in self._kept:
            self._kept = {known: rows for known, rows in self._kept.items() if known == epoch - 1}
            samples = [int(n) for n in self._samples(epoch)[: self._used[epoch]]]
            self._kept[epoch] = pack(samples, self.lengths, self.packing, self.seed, epoch)
        return self._kept[epoch]


def pack(samples: Sequence[int], lengths: Numbers, packing: Packing, seed: int, epoch: int) -> list[Row]:
    """Puts an epoch's samples into rows, each sample whole; one longer than a row has a row to itself.

    `in_order`: row after row, in the order given. `first_fit`: in the order given, each into the first row of its
    window with room. `best_fit`: a window's samples from long to short, each into the fullest row with room.
    `even_fit`: row after row, the longest sample left and then those that fill the rest evenly (see `_even_fit`).
    Under the last two a window's rows then come in random order, and the samples of a row in the order given.
    """
    if packing.method == "in_order":
        return _in_order(samples, lengths, packing.length)
    rows: list[Row] = []
    for number, begin in enumerate(range(0, len(samples), packing.window)):
        window = samples[begin : begin + packing.window]
        if packing.method == "first_fit":
            rows += _first_fit(window, lengths, packing.length)
            continue
        fit = _best_fit if packing.method == "best_fit" else _even_fit
        found = fit(window, lengths, packing.length)
        rows += [found[place] for place in permutation(len(found), seed, epoch, number, _OF_ROWS)]
    return rows


def _in_order(samples: Sequence[int], lengths: Numbers, length: int) -> list[Row]:
    rows: list[Row] = []
    room = -1
    for sample in samples:
        need = int(lengths[sample])
        if need > room:
            rows.append([])
            room = length
        rows[-1].append(sample)
        room -= need
    return rows


def _first_fit(samples: Sequence[int], lengths: Numbers, length: int) -> list[Row]:
    # A tree of the room of all rows there can be: each knot knows the most room below it.
    n_leaves = 1 << (len(samples) - 1).bit_length()
    room = [length] * (2 * n_leaves)
    rows: list[Row] = [[] for _ in samples]
    for sample in samples:
        need = min(int(lengths[sample]), length)
        knot = 1
        while knot < n_leaves:
            knot = 2 * knot + (room[2 * knot] < need)
        rows[knot - n_leaves].append(sample)
        room[knot] -= need
        while knot > 1:
            knot //= 2
            room[knot] = max(room[2 * knot], room[2 * knot + 1])
    return [row for row in rows if row]


def _best_fit(samples: Sequence[int], lengths: Numbers, length: int) -> list[Row]:
    # Rows by the room they have, and a bit for each room that a row has: the least that suffices is the lowest bit.
    by_room: list[list[int]] = [[] for _ in range(length + 1)]
    rooms = 0
    rows: list[list[int]] = []
    for place in sorted(range(len(samples)), key=lambda place: -int(lengths[samples[place]])):
        need = min(int(lengths[samples[place]]), length)
        enough = rooms >> need
        if enough:
            room = need + (enough & -enough).bit_length() - 1
            row = by_room[room].pop()
            rooms ^= (not by_room[room]) << room
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(place)
        by_room[room - need].append(row)
        rooms |= 1 << (room - need)
    return [[samples[place] for place in sorted(row)] for row in rows]


def _even_fit(samples: Sequence[int], lengths: Numbers, length: int) -> list[Row]:
    """Aims at whole rows, where fitting one sample at a time aims at small gaps.

    A row with room for n samples of average length takes one of an n-th of its room, and so on; the last one may then
    be as long as the room, and among many samples one of nearly that length is left.
    """
    places = sorted(range(len(samples)), key=lambda place: int(lengths[samples[place]]))
    left = [int(lengths[samples[place]]) for place in places]  # from short to long
    total = sum(left)
    rows: list[list[int]] = []
    while left:
        average = total / len(left)
        row, room, at = [], length, len(left) - 1
        while True:
            need = left.pop(at)
            row.append(places.pop(at))
            room -= need
            total -= need
            if not left or left[0] > room:
                break
            n = min(max(1, round(room / average)), room // left[0])
            at = max(0, bisect_right(left, room / n) - 1)
        rows.append(row)
    return [[samples[place] for place in sorted(row)] for row in rows]
