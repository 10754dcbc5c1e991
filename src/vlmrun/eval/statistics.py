"""Intervals and tests for scores: questions about one image stand or fall together, so that images are drawn.

The bootstrap of Efron (1979), over clusters; where all clusters agree, which it makes nothing of, the exact bound of
Clopper and Pearson (1934); the sign-flip test of paired differences. Pure Python: a score needs no numpy.
"""

from __future__ import annotations

import array
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

_DRAWS = 1000
_FLIPS = 2000
_GROUPS = 20
_STUDENT = 2.093  # 97.5 % of Student's t with 19 degrees of freedom
_LOWER, _UPPER = 0.025, 0.975
_MOST_CLUSTERS = 1 << 16  # two random bytes name one


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


def interval(
    values: Sequence[float], clusters: Sequence[Hashable], seed: int = 0, least: float = 0.0
) -> Interval | None:
    """The mean's 95 % interval by drawing clusters; None with fewer than two clusters.

    Args:
        values: one a question, from `least` to 1.
        clusters: what each belongs to, such as its image.
    """
    sums: dict[Hashable, float] = defaultdict(float)
    sizes: dict[Hashable, int] = defaultdict(int)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value
        sizes[cluster] += 1
    if len(sums) < 2:
        return None
    if min(values) == max(values):
        return agreed(values[0], len(sums), least)
    total, size = list(sums.values()), list(sizes.values())
    equal = len(set(size)) == 1
    means = []
    for drawn in _draws(len(total), seed):
        top = sum([total[place] for place in drawn])
        bottom = size[0] * len(drawn) if equal else sum([size[place] for place in drawn])
        means.append(top / bottom)
    return _quantiles(means)


def agreed(value: float, n_clusters: int, least: float = 0.0, most: float = 1.0) -> Interval:
    """The interval where every cluster that was seen gives one value: n of n right is no proof of 100 %.

    The share of clusters that may give another value is such that n agree in one case of 40 (Clopper and Pearson).
    """
    others = 1.0 - _LOWER ** (1.0 / n_clusters)
    return Interval(value - others * (value - least), value + others * (most - value))


def grouped(
    value: Callable[[Sequence[int]], float | None], clusters: Sequence[Hashable], seed: int = 0, most: float = 1.0
) -> Interval | None:
    """A 95 % interval of any score by leaving out one of 20 groups of clusters at a time (the grouped jackknife).

    For scores that are no mean, such as F1: the bootstrap would compute them a thousand times.

    Args:
        value: the score of the questions at these places, from 0 to `most`; None where it is not defined.
    """
    listed = list(dict.fromkeys(clusters))
    n_groups = min(_GROUPS, len(listed))
    random.Random(seed).shuffle(listed)
    group = {cluster: place % n_groups for place, cluster in enumerate(listed)} if n_groups > 1 else {}
    whole = value(range(len(clusters)))
    left = [value([at for at, each in enumerate(clusters) if group[each] != out]) for out in range(n_groups) if group]
    known = [each for each in left if each is not None]
    if whole is None or len(known) < 2 or len(known) < len(left):
        return None
    middle = sum(known) / len(known)
    spread = ((len(known) - 1) / len(known) * sum((each - middle) ** 2 for each in known)) ** 0.5
    if spread == 0:
        return agreed(whole, len(listed), most=most)
    return Interval(max(0.0, whole - _STUDENT * spread), min(most, whole + _STUDENT * spread))


def _draws(n: int, seed: int) -> Sequence[Sequence[int]]:
    """As many draws of n places with replacement, each the same for the same seed."""
    generator = random.Random(seed)
    if n > _MOST_CLUSTERS:
        return [[generator.randrange(n) for _ in range(n)] for _ in range(_DRAWS // 10)]
    found = []
    for _ in range(_DRAWS):
        numbers = array.array("H", generator.randbytes(2 * n))
        found.append([number * n >> 16 for number in numbers])
    return found


def _quantiles(values: list[float]) -> Interval:
    values.sort()
    last = len(values) - 1
    return Interval(values[round(_LOWER * last)], values[round(_UPPER * last)])


@dataclass(frozen=True)
class Paired:
    """Two models on the same questions.

    Args:
        difference: mean of the second minus mean of the first.
        p_value: of no difference, two-sided, by flipping signs of whole clusters.
        better, worse: questions on which the second model is.
    """

    n_questions: int
    difference: float
    interval: Interval | None
    p_value: float
    better: int
    worse: int


def paired(
    first: Mapping[str, float], second: Mapping[str, float], clusters: Mapping[str, Hashable], seed: int = 0
) -> Paired | None:
    """Compares marks by question id; None when no question is in both.

    Args:
        clusters: what a question belongs to, by id.
    """
    shared = [id for id in first if id in second]
    if not shared:
        return None
    differences = [second[id] - first[id] for id in shared]
    groups = [clusters.get(id, id) for id in shared]
    return Paired(
        n_questions=len(shared),
        difference=sum(differences) / len(differences),
        interval=interval(differences, groups, seed, least=-1.0),
        p_value=_sign_flips(differences, groups, seed),
        better=sum(value > 0 for value in differences),
        worse=sum(value < 0 for value in differences),
    )


def _sign_flips(differences: Sequence[float], clusters: Sequence[Hashable], seed: int) -> float:
    sums: dict[Hashable, float] = defaultdict(float)
    for value, cluster in zip(differences, clusters, strict=True):
        sums[cluster] += value
    moved = [value for value in sums.values() if value]
    if not moved:
        return 1.0
    observed = abs(sum(moved)) - 1e-12
    generator = random.Random(seed)
    n_extreme = 0
    for _ in range(_FLIPS):
        signs = generator.getrandbits(len(moved))
        total = sum([value if signs >> place & 1 else -value for place, value in enumerate(moved)])
        n_extreme += abs(total) >= observed
    return (n_extreme + 1) / (_FLIPS + 1)
