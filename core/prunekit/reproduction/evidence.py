"""What seeds say: means with intervals, differences on the same seeds, and which claims they bear out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from math import inf, sqrt
from typing import Literal

import numpy as np

from prunekit.ranks import interval
from prunekit.records import Plain

Verdict = Literal["pass", "fail", "undecided"]
CONFIDENCE = 0.95
RESAMPLES = 10_000
_MOST_EXACT = 16  # pairs, up to which every choice of signs is tried


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: The mean, or another statistic.
        low: Where the interval begins.
        high: Where it ends.
        deviation: Standard deviation of the sample that it is of; ``None`` where that says nothing.
        count: Of what it is of: seeds, runs.
    """

    value: float
    low: float
    high: float
    count: int
    deviation: float | None = None

    def below(self, limit: float) -> Verdict:
        """Whether the number is below a limit, as far as the interval tells."""
        if self.high < limit:
            return "pass"
        return "fail" if self.low > limit else "undecided"

    def within(self, margin: float) -> Verdict:
        """Whether it is between minus and plus a margin, as far as the interval tells."""
        if -margin < self.low and self.high < margin:
            return "pass"
        return "fail" if self.low > margin or self.high < -margin else "undecided"


def mean(values: Sequence[float]) -> Estimate:
    """A mean with Student's interval.

    Examples:
        >>> found = mean([1.0, 2.0, 3.0])
        >>> found.value, round(found.low, 3), round(found.high, 3), found.deviation
        (2.0, -0.484, 4.484, 1.0)
    """
    array = np.asarray(values, dtype=np.float64)
    count, centre = len(array), float(array.mean())
    if count < 2:
        return Estimate(centre, -inf, inf, count)
    special: Plain = import_module("scipy.special")  # which has no types
    deviation = float(array.std(ddof=1))
    reach = float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * deviation / sqrt(count)
    return Estimate(centre, centre - reach, centre + reach, count, deviation)


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The percentile interval of the mean over bootstrap samples; of few values it is too narrow."""
    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(array), (RESAMPLES, len(array)))
    return interval(array[draws].mean(1), CONFIDENCE)


def sign_flips(differences: Sequence[float]) -> float:
    """The paired permutation test: how often signs at random make a mean as far from 0, both ways.

    Exact up to 16 pairs; of n pairs the smallest value is 2^(1−n).

    Examples:
        >>> sign_flips([1.0, 2.0, 3.0])
        0.25
    """
    array = np.asarray(differences, dtype=np.float64)
    if len(array) <= _MOST_EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=len(array))))
    else:
        draws = np.random.default_rng(0).integers(0, 2, (RESAMPLES, len(array)))
        signs = np.concatenate([np.ones((1, len(array))), 2.0 * draws - 1])
    means = np.abs(signs @ array)
    return float((means >= means[0] * (1 - 1e-12)).mean())


def paired(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """The mean of first minus second, of which each pair is of one seed."""
    return mean([a - b for a, b in zip(first, second, strict=True)])
