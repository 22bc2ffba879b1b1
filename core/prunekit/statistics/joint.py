"""A quadratic model of the loss over all prunable weights together."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

from prunekit.statistics.request import Statistic


@dataclass(frozen=True)
class JointModel:
    """``gᵀΔ + ½Δᵀ(C + αI)Δ`` for a change Δ of all prunable weights, minimised with a given number of non-zeros.

    Attributes:
        statistic: Gives C by its products: ``curvature_factors``, with its options. If it draws, it must be among those
            that the criterion requires, or C would come from another draw.
        damping: α > 0, λ included where it is damping.
        gradient: Whether g is the gradient, or zero.
    """

    statistic: Statistic
    damping: float
    gradient: bool = True


@dataclass(frozen=True)
class Certificate:
    """How far weights are from the best ones with as many non-zeros, under a :class:`JointModel` P.

    Attributes:
        value: P of the weights, rounded up; in the loss's units, a change.
        fitted: P of the same choice with the weights that stay at the model's minimum, rounded up.
        bound: No weights with at most ``budget`` non-zeros have a smaller P, rounding accounted for.
        budget: How many weights stay.
        damping: α.
        nu: Dual variables that the bound follows from, ``[examples, columns]``, float64.
        optimum: P of the best choice that branch and bound has found, rounded up; ``None`` without it.
        exact_bound: What branch and bound has shown no choice to be below, up to rounding in its last digits.
        nodes: How many nodes that took.
    """

    value: float
    fitted: float
    bound: float
    budget: int
    damping: float
    nu: Any
    optimum: float | None = None
    exact_bound: float | None = None
    nodes: int | None = None

    @property
    def gap(self) -> float:
        """By how much the weights are worse than the best ones, at most."""
        return self.value - self.bound

    @property
    def relative_gap(self) -> float | None:
        """By which fraction of the best value that is at most; ``None`` where value and bound have different signs.

        Of the two bounds the higher counts; the best value lies between it and ``value``. Where all of that is a cost,
        the gap is a fraction of no less than the bound; where all of it is a gain, of no less than ``−value``.

        Examples:
            >>> [Certificate(v, v, b, 9, 0.1, None).relative_gap for v, b in ((3.0, 2.0), (-2.0, -3.0), (1.0, -1.0))]
            [0.5, 0.5, None]
        """
        bound = self.bound if self.exact_bound is None else max(self.bound, self.exact_bound)
        gap = max(0.0, self.value - bound)
        if not isfinite(gap):
            return None
        if gap == 0:
            return 0.0
        if bound > 0:
            return gap / bound
        return gap / -self.value if self.value < 0 else None
