"""How far sets that come from independent draws agree, and how large a draw makes them agree well enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import exp, inf, lgamma, log, sqrt
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """A mean over all pairs of independent draws.

    Attributes:
        value: The mean.
        error: Its standard error, by the jackknife over draws; NaN of less than three.
        low: Of the interval, by Student's t with one degree of freedom less than draws.
        high: The same.
        draws: How many there are.
    """

    value: float
    error: float
    low: float
    high: float
    draws: int


def over_pairs(draws: Sequence[Any], of_two: Callable[[Any, Any], float], confidence: float) -> Agreement:
    """The mean of a number of two draws, over all pairs, with its uncertainty over draws (Arvesen, 1969).

    Args:
        draws: Two at least.
        of_two: Symmetric.
        confidence: Of the interval.
    """
    size = len(draws)
    table = np.zeros((size, size))
    for i, j in combinations(range(size), 2):
        table[i, j] = table[j, i] = of_two(draws[i], draws[j])
    value = float(table.sum() / (size * (size - 1)))
    if size < 3:
        return Agreement(value, float("nan"), float("nan"), float("nan"), size)
    without = (table.sum() - 2 * table.sum(0)) / ((size - 1) * (size - 2))
    error = sqrt((size - 1) / size * float(((without - without.mean()) ** 2).sum()))
    reach = error * t_quantile((1 + confidence) / 2, size - 1)
    return Agreement(value, error, value - reach, value + reach, size)


def jaccard(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """``|A ∩ B| / |A ∪ B|``; NaN of two empty sets.

    Examples:
        >>> jaccard(np.array([True, True, False]), np.array([False, True, True]))
        0.3333333333333333
    """
    either = int(np.count_nonzero(one | other))
    return int(np.count_nonzero(one & other)) / either if either else float("nan")


def jaccard_by_chance(items: int, chosen: int) -> float:
    """The mean of :func:`jaccard` of two independent random sets of ``chosen`` of ``items``, exactly.

    What they share is hypergeometric.

    Examples:
        >>> jaccard_by_chance(2, 1)
        0.5
    """
    if not chosen:
        return float("nan")
    least, most = max(0, 2 * chosen - items), chosen
    middle = chosen * chosen / items
    spread = 12 * sqrt(middle * (1 - chosen / items) ** 2 + 1) + 12  # beyond which nothing is left to add up
    shared = np.arange(max(least, int(middle - spread)), min(most, int(middle + spread) + 1) + 1)
    whole = _log_choose(items, chosen)
    chances = np.array(
        [
            exp(_log_choose(chosen, k) + _log_choose(items - chosen, chosen - k) - whole)
            for k in shared.tolist()
        ]
    )
    return float((chances * shared / (2 * chosen - shared)).sum() / chances.sum())


def _log_choose(items: int, chosen: int) -> float:
    return lgamma(items + 1) - lgamma(chosen + 1) - lgamma(items - chosen + 1)


@dataclass(frozen=True)
class Enough:
    """The size of a draw from which draws agree well enough; infinite where the sizes tried do not tell.

    Attributes:
        size: The estimate.
        low: Of its interval.
        high: The same.
    """

    size: float
    low: float
    high: float


def enough(
    sizes: Sequence[int], found: Sequence[Agreement], target: float, generator: Generator, confidence: float
) -> Enough:
    """Where agreement reaches a target: between sizes it is linear in the logarithm of the size, and never falls.

    Args:
        sizes: Increasing.
        found: What was found at each.
        target: Of the agreement.
        generator: Draws what else might have been found, each within its uncertainty: Student's t, so for sizes with
            three draws at least.
        confidence: Of the interval.

    Returns:
        The smallest size tried, where it is enough already.
    """
    values = np.array([one.value for one in found])
    size = _crossing(sizes, values, target)
    errors = np.array([one.error for one in found])
    if not np.isfinite(errors).all():
        return Enough(size, float("nan"), float("nan"))
    freedom = np.array([one.draws - 1 for one in found])
    others = values + errors * generator.standard_t(freedom, size=(2000, len(values)))
    crossings = np.sort([_crossing(sizes, one, target) for one in others])
    ends = [int(share * (len(crossings) - 1)) for share in ((1 - confidence) / 2, (1 + confidence) / 2)]
    return Enough(size, float(crossings[ends[0]]), float(crossings[ends[1]]))


def _crossing(sizes: Sequence[int], values: Floats, target: float) -> float:
    rising = increasing(values)
    reached = np.flatnonzero(rising >= target)
    if not len(reached):
        return inf
    k = int(reached[0])
    if k == 0:
        return float(sizes[0])
    share = (target - rising[k - 1]) / (rising[k] - rising[k - 1])
    return exp(log(sizes[k - 1]) + float(share) * (log(sizes[k]) - log(sizes[k - 1])))


def increasing(values: Floats) -> Floats:
    """The nearest sequence that never falls, in least squares: neighbours that fall are pooled.

    Examples:
        >>> increasing(np.array([1.0, 3.0, 2.0])).tolist()
        [1.0, 2.5, 2.5]
    """
    blocks: list[tuple[float, int]] = []
    for value in values.tolist():
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (second, b), (first, a) = blocks.pop(), blocks.pop()
            blocks.append(((first * a + second * b) / (a + b), a + b))
    return np.repeat([mean for mean, _ in blocks], [count for _, count in blocks])


def t_quantile(share: float, freedom: int) -> float:
    """Student's t, by bisection of its distribution's integral.

    Args:
        share: Above one half.
        freedom: Degrees of freedom.

    Examples:
        >>> round(t_quantile(0.975, 7), 4)
        2.3646
    """
    scale = exp(lgamma((freedom + 1) / 2) - lgamma(freedom / 2)) / sqrt(freedom * np.pi)

    def above_middle(t: float) -> float:
        angle = np.linspace(
            0.0, np.arctan(t / sqrt(freedom)), 2001
        )  # in which the density is smooth and bounded
        values = np.cos(angle) ** (freedom - 1)
        weights = np.full(len(angle), 2.0)
        weights[1::2], weights[0], weights[-1] = 4.0, 1.0, 1.0
        return float(scale * sqrt(freedom) * (weights * values).sum() * (angle[1] - angle[0]) / 3)

    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if above_middle(middle) < share - 0.5 else (low, middle)
    return (low + high) / 2
