"""Rank correlations with bootstrap intervals, ties included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_PAIRED = 2048
"""Items of which all pairs are compared; of more, Kendall's correlation is that of so many, drawn at random."""


@dataclass(frozen=True)
class Correlation:
    """A rank correlation, and where its interval ends; NaN where one side is all alike.

    Attributes:
        value: In [−1, 1].
        low: Of the percentile interval over bootstrap samples of the items.
        high: The same.
    """

    value: float
    low: float
    high: float


def ranks(values: Floats) -> Floats:
    """From 0, ties with their mean.

    Examples:
        >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
        [1.5, 0.0, 1.5]
    """
    which, counts = _groups(values)
    last = np.cumsum(counts) - 1
    found: Floats = (last - (counts - 1) / 2)[which]
    return found


def spearman(x: Floats, y: Floats, generator: Generator, resamples: int, confidence: float) -> Correlation:
    """Pearson's correlation of the ranks, ties with their mean rank.

    Args:
        x: One value of each item.
        y: The other.
        generator: Draws bootstrap samples.
        resamples: How many.
        confidence: Of the interval.

    Examples:
        >>> spearman(np.arange(9.0), np.arange(9.0) ** 3, np.random.default_rng(0), 10, 0.95).value
        1.0
    """
    value = float(_pearson(ranks(x)[None], ranks(y)[None], np.ones((1, len(x))))[0])
    resampled = []
    for counts in _resampled(len(x), generator, resamples):
        resampled.append(_pearson(_weighted_ranks(x, counts), _weighted_ranks(y, counts), counts))
    return _with_interval(value, resampled, confidence)


def kendall(x: Floats, y: Floats, generator: Generator, resamples: int, confidence: float) -> Correlation:
    """Kendall's τ_b: concordant minus discordant pairs, over the geometric mean of the pairs that are not tied.

    Arguments are those of :func:`spearman`. A bootstrap sample that holds item i ``m_i`` times has
    ``Σ_ij m_i m_j sign(x_i − x_j) sign(y_i − y_j)`` as its numerator, so one matrix serves all samples.

    Examples:
        >>> kendall(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]), np.random.default_rng(0), 0, 0.95).value
        0.3333333333333333
    """
    if len(x) > MOST_PAIRED:
        some = generator.choice(len(x), MOST_PAIRED, replace=False)
        x, y = x[some], y[some]
    signs = (np.sign(v[:, None] - v[None]).astype(np.float32) for v in (ranks(x), ranks(y)))
    agreement = next(signs) * next(signs)
    groups = [_groups(v) for v in (x, y)]

    def tau(counts: Floats) -> Floats:
        pairs = np.einsum("bi,bi->b", (counts.astype(np.float32) @ agreement).astype(np.float64), counts)
        free = [
            counts.sum(1) ** 2 - (_summed(counts, which, len(sizes)) ** 2).sum(1) for which, sizes in groups
        ]
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = np.clip(pairs / np.sqrt(free[0] * free[1]), -1, 1)
        return found

    value = float(tau(np.ones((1, len(x))))[0])
    return _with_interval(
        value, [tau(counts) for counts in _resampled(len(x), generator, resamples)], confidence
    )


def interval(values: Floats, confidence: float) -> tuple[float, float]:
    """The percentile interval of some bootstrap values; NaN where there are none that are finite."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _with_interval(value: float, resampled: list[Floats], confidence: float) -> Correlation:
    return Correlation(value, *interval(np.concatenate([*resampled, np.empty(0)]), confidence))


def _resampled(items: int, generator: Generator, resamples: int) -> list[Floats]:
    """How often each item is in each bootstrap sample, ``[samples, items]``, in pieces of bounded size."""
    piece = max(1, (1 << 22) // max(1, items))
    share = np.full(items, 1 / items)
    sizes = [min(piece, resamples - start) for start in range(0, resamples, piece)]
    return [generator.multinomial(items, share, size).astype(np.float64) for size in sizes]


def _groups(values: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which group of equal values each belongs to, in increasing order, and how many each has."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return which.reshape(-1), counts


def _summed(counts: Floats, which: NDArray[np.intp], groups: int) -> Floats:
    """The counts of each group, ``[samples, groups]``."""
    if groups == counts.shape[1]:
        summed = np.empty_like(counts)
        summed[:, which] = counts
        return summed
    order = np.argsort(which, kind="stable")
    starts = np.searchsorted(which[order], np.arange(groups))
    found: Floats = np.add.reduceat(counts[:, order], starts, axis=1)
    return found


def _weighted_ranks(values: Floats, counts: Floats) -> Floats:
    """Ranks within each sample, of every item, ``[samples, items]``."""
    which, sizes = _groups(values)
    members = _summed(counts, which, len(sizes))
    middle = np.cumsum(members, axis=1) - (members + 1) / 2
    found: Floats = middle[:, which]
    return found


def _pearson(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Of each sample, items counted as often as they are in it."""
    size = counts.sum(1, keepdims=True)
    x, y = (v - (v * counts).sum(1, keepdims=True) / size for v in (x, y))
    top = (counts * x * y).sum(1)
    squares = (counts * x * x).sum(1) * (counts * y * y).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.clip(top / np.sqrt(squares), -1, 1)
    return found
