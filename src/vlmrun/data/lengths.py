"""How many positions every sample takes in a batch."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vlmrun import logs
from vlmrun.artifact import writing
from vlmrun.data.collate import Collator
from vlmrun.data.dataset import Dataset

log = logs.get(__name__)

_EVERY_SECONDS = 20.0


def measure(dataset: Dataset, collator: Collator, indices: Iterable[int], n_of_all: int) -> list[int]:
    """Tokenises samples and counts; images are not decoded.

    Args:
        n_of_all: how many samples all ranks measure, for the log.

    Raises:
        DataError: for a sample that cannot be encoded, under `on_error: fail`.
    """
    found: list[int] = []
    told = time.monotonic()
    for index in indices:
        found.append(collator.length(dataset.text(index)))
        if time.monotonic() - told > _EVERY_SECONDS:
            told = time.monotonic()
            log.info("measuring samples: %d on this rank, %d on all when done", len(found), n_of_all)
    return found


def read(file: Path, n: int) -> np.ndarray | None:
    """What `write` wrote, if it is of as many samples: under `on_error: skip` images may have come or gone."""
    if not file.is_file():
        return None
    try:
        lengths: np.ndarray = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        log.warning("%s cannot be read and is made again: %s", file, error)
        return None
    return lengths if lengths.shape == (n,) and lengths.dtype == np.int32 else None


def write(file: Path, lengths: list[int]) -> np.ndarray:
    """Keeps lengths for the next start; whole or not at all."""
    array = np.asarray(lengths, dtype=np.int32)
    with writing(file) as temporary, temporary.open("wb") as handle:
        np.save(handle, array, allow_pickle=False)
    return array
