"""Positions without a token under packing, padding and modality grouping: `python -m benchmarks.packing`.

The data of LLaVA-1.5's instruction mix are not on this machine, so lengths are drawn (`draw`).
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from benchmarks.measure import Table, parser, show
from vlmrun.config.schema import Packing
from vlmrun.data import order, packing

IMAGE = 576  # positions of a picture in LLaVA-1.5
LONGEST = 2048

# Records of each source of llava_v1_5_mix665k, whether they have a picture, and the log-normal of their words' tokens:
# median and spread. The numbers are LLaVA's author's own count (haotian-liu/LLaVA, issue 702; their sum is the file's
# 665,298). The medians are our assumption from the form of each source: how many questions a record holds, and of how
# many words. VQA sources hold several short questions about one picture, ShareGPT is cut at 2048.
SOURCES: dict[str, tuple[int, bool, float, float]] = {
    "LLaVA-Instruct": (157_712, True, 240.0, 0.45),
    "ShareGPT": (40_688, False, 1100.0, 0.9),
    "VQAv2": (82_783, True, 170.0, 0.35),
    "GQA": (72_140, True, 190.0, 0.5),
    "OKVQA": (8_998, True, 90.0, 0.3),
    "OCRVQA": (80_000, True, 150.0, 0.3),
    "A-OKVQA": (66_160, True, 130.0, 0.35),
    "TextCaps": (21_953, True, 75.0, 0.25),
    "RefCOCO": (48_447, True, 260.0, 0.55),
    "Visual Genome": (86_417, True, 280.0, 0.5),
}
_MOST_PARTS = 50  # pieces of a row that `fewest` reckons with


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__ or "")
    options.add_argument("--samples", type=int, default=100_000)
    options.add_argument("--micro", type=int, default=16, help="samples of a micro batch, for padding and grouping")
    options.add_argument("--ranks", type=int, default=8)
    options.add_argument("--window", type=int, default=4096)
    options.add_argument("--text", type=float, default=1.0, help="text so many times as long as assumed")
    chosen = options.parse_args()
    lengths, seen = draw(2_000 if chosen.quick else chosen.samples, chosen.text)
    rows = batches(lengths, seen, chosen.micro, chosen.ranks)
    for length in (2048, 4096, 8192):
        for method in ("even_fit", "best_fit", "first_fit", "in_order"):
            rows.append(packed(lengths, Packing(length=length, method=method, window=chosen.window)))
    drawn = f"{len(lengths)} samples drawn like llava_v1_5_mix665k"
    title = f"{drawn}: {lengths.mean():.0f} tokens on average, {IMAGE} an image"
    show(Table(title, _HEADER, rows, _NOTES), chosen.json)


_HEADER = ["way", "row", "window", "samples a row", "unused %", "at least", "seconds"]
_NOTES = [
    "unused: positions of all rows that hold no token. padding: a row for each sample, as long as the longest of its\n"
    "micro batch, in random order; grouped: the same under group_by_modality_length. Packed rows count in full,\n"
    "though a micro batch is only as long as its longest row.",
    "at least: what any packing of these samples into such rows leaves unused (`fewest`).",
    "Lengths are drawn: as many of each source as LLaVA's author counts, the words of each as we assume them\n"
    "(benchmarks/packing.py has the table, --text makes them longer). seconds: to lay out one epoch.",
]


def draw(n: int, text: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of n samples in random order, pictures included, and whether each has one."""
    random = np.random.default_rng(2310_03744)  # not the order's seed, or its permutation would sort what is drawn here
    shares = np.array([share for share, *_ in SOURCES.values()], dtype=float)
    source = random.choice(len(shares), n, p=shares / shares.sum())
    seen = np.array([picture for _, picture, *_ in SOURCES.values()])[source]
    medians = np.array([median for *_, median, _ in SOURCES.values()])[source]
    spreads = np.array([spread for *_, spread in SOURCES.values()])[source]
    words = np.exp(np.log(text * medians) + spreads * random.standard_normal(n))
    return np.clip(words.astype(int) + IMAGE * seen, 16, LONGEST), seen


def batches(lengths: np.ndarray, seen: np.ndarray, micro: int, ranks: int) -> list[list[Any]]:
    """One sample a row, padded to the longest of its micro batch: shuffled, and grouped."""
    n = len(lengths)
    signed = np.where(seen, lengths, -lengths)
    orders = {
        "padding": order.shuffled([n], None, 0),
        "padding, grouped": order.by_length([n], None, signed, seed=0, micro_batch=micro, world=ranks),
    }
    rows = []
    for name, make in orders.items():
        began = time.perf_counter()
        laid_out = lengths[np.asarray(make(0))]
        seconds = time.perf_counter() - began
        whole = laid_out[: n // micro * micro].reshape(-1, micro)
        unused = 1 - whole.sum() / (whole.max(1) * micro).sum()
        rows.append([name, f"micro batch of {micro}", None, 1.0, round(100 * unused, 2), None, round(seconds, 2)])
    return rows


def fewest(lengths: np.ndarray, length: int) -> int:
    """Rows of `length` that any packing of these samples needs: a lower bound.

    Each sample is given a weight such that samples which fit into one row together never weigh more than 1; all weights
    together are then no more than the rows. Cut a row into k + 1 parts: a sample longer than n of them, and not than
    n + 1, weighs n / k, since at most k such parts are left over for all samples of a row. With k = 1, a sample longer
    than half a row takes a whole one; with k = 2, one longer than a third takes half.

    Source: the functions u^(k) of S. Fekete and J. Schepers, New classes of fast lower bounds for bin packing problems.
    """
    bounds = [-(-int(lengths.sum()) // length)]
    for k in range(1, _MOST_PARTS):
        parts, rest = np.divmod((k + 1) * lengths, length)
        exact = rest == 0  # such a sample weighs its share of the row
        weight = int(parts[~exact].sum()) / k + int(parts[exact].sum()) / (k + 1)
        bounds.append(math.ceil(weight - 1e-6))
    return max(bounds)


def packed(lengths: np.ndarray, how: Packing) -> list[Any]:
    """Several samples a row."""
    n = len(lengths)
    began = time.perf_counter()
    rows = packing.pack(order.shuffled([n], None, 0)(0).tolist(), lengths, how, 0, 0)
    seconds = time.perf_counter() - began
    assert sum(len(row) for row in rows) == n
    unused = 1 - lengths.sum() / (len(rows) * how.length)
    window = None if how.method == "in_order" else how.window
    at_least = 1 - lengths.sum() / (fewest(lengths, how.length) * how.length)
    shown = [round(n / len(rows), 2), round(100 * unused, 2), round(100 * at_least, 2), round(seconds, 2)]
    return [how.method, f"{how.length} tokens", window, *shown]


if __name__ == "__main__":
    main()
