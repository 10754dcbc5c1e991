"""A schedule in energon's order: batches follow from the loader that is reproduced, not from ranks and workers here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vlmrun.data.sampler import Schedule
from vlmrun.data.shards.order import Loading, rank_batches


class EnergonSchedule(Schedule):
    """Global batches of the micro batches that every data-parallel rank of the other loader has in turn.

    With as many ranks and samples a micro batch here, each rank reads what its counterpart does. To resume at a step
    the draws before it are made again (about 15 microseconds a sample) and nothing is read.

    Args:
        counts: samples of each shard, in the order of the split, those that cannot be used among them.
        places: of every sample of the data set, its place in the line of all those.
    """

    def __init__(self, counts: Sequence[int], places: Sequence[int], loading: Loading, **cut: Any) -> None:
        super().__init__(len(places), **cut)
        self._counts, self._loading = counts, loading
        self._samples = {place: sample for sample, place in enumerate(places)}
        self._unusable = frozenset(range(sum(counts))) - self._samples.keys()
        self._parts = self.global_batch // (loading.ranks * loading.micro_batch)
        self._begin()

    def indices(self, step: int) -> list[Any]:
        """Sample numbers of one global batch: part by part, and in each the ranks' micro batches in turn."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        if step < self._made:
            self._begin()
        while self._made <= step:
            self._last = [place for _ in range(self._parts) for stream in self._streams for place in next(stream)]
            self._made += 1
        return [self._samples[place] for place in self._last]

    def _begin(self) -> None:
        ranks = range(self._loading.ranks)
        self._streams: list[Iterator[list[int]]] = [
            rank_batches(self._counts, self._loading, rank, self._unusable) for rank in ranks
        ]
        self._made, self._last = 0, []
