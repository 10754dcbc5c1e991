"""What the two ways to pass over a slice share: fp32 numbers by their bits, and counts of them."""

from __future__ import annotations

from typing import Any

import numpy as np

HIGH_BITS, LOW_BITS = 15, 16  # of a magnitude's 31
BY_NOBODY, BY_SUM, BY_COUNT = 0, 1, 2  # who elects signs

Array = np.ndarray[Any, Any]


def reach(counts: Array, k: int) -> tuple[int, int]:
    """The bin that holds the k-th of what was counted, the last bin first, and how many of the k lie in it.

    Args:
        counts: integers [bins].
        k: for 0 the bin of the first.

    Returns:
        Bin and number; bin -1 when there are fewer than k.
    """
    sums = np.cumsum(counts[::-1])
    place = int(np.searchsorted(sums, max(k, 1)))
    above = int(sums[place - 1]) if place else 0
    return (counts.size - 1 - place, k - above) if place < counts.size else (-1, k - above)
