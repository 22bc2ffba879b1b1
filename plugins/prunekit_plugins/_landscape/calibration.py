"""How well predicted changes of the loss agree with measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Calibration:
    """Of the steps that have a prediction.

    Attributes:
        slope: Of the least-squares line, with an intercept, of measured over predicted changes; 1 where they agree.
        r_squared: Its coefficient of determination.
        rank_correlation: Spearman's, ties with their mean rank.
        steps: How many there are.

    All but the last are ``None`` of less than two steps, and of steps that are all alike.
    """

    slope: float | None
    r_squared: float | None
    rank_correlation: float | None
    steps: int


def calibration(predicted: Sequence[float | None], measured: Sequence[float]) -> Calibration:
    """Compare them step by step.

    Examples:
        >>> calibration([1.0, None, 2.0, 3.0], [2.0, 0.0, 4.0, 6.0])
        Calibration(slope=2.0, r_squared=1.0, rank_correlation=1.0, steps=3)
    """
    pairs = [(p, m) for p, m in zip(predicted, measured, strict=True) if p is not None]
    x, y = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    correlation, ranked = _correlation(x, y), _correlation(_ranks(x), _ranks(y))
    if correlation is None or ranked is None:
        return Calibration(None, None, None, len(pairs))
    slope = correlation * float(y.std() / x.std())
    return Calibration(slope, correlation**2, ranked, len(pairs))


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's, within [−1, 1] whatever the rounding."""
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return None
    x, y = ((v - v.mean()) / np.abs(v - v.mean()).max() for v in (x, y))
    return float(np.clip((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()), -1, 1))


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 0, ties with their mean."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    ranks: np.ndarray = (last - (counts - 1) / 2)[which]
    return ranks
