"""A quadratic model of the loss over all prunable weights together."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

from prunekit.statistics.request import Statistic


@dataclass(frozen=True)
class JointModel:
    """``gᵀΔ + ½Δᵀ(C + αI)Δ`` of a change Δ of all prunable weights, which a step makes small for as many non-zeros.

    Attributes:
        statistic: Knows C by its products: ``curvature_factors``, with its options.
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
        value: P of the weights, no less than it is; in the loss's units, a change.
        fitted: P of the same choice with what stays at the model's minimum, no less than it is.
        bound: No weights with at most ``budget`` non-zeros have a smaller P, rounding accounted for.
        budget: How many weights stay.
        damping: α.
        nu: What the bound follows from, ``[examples, columns]``, float64.
    """

    value: float
    fitted: float
    bound: float
    budget: int
    damping: float
    nu: Any

    @property
    def gap(self) -> float:
        """By how much the weights are worse than the best ones, at most."""
        return self.value - self.bound

    @property
    def relative_gap(self) -> float | None:
        """The same as a fraction of the best value, at most; ``None`` where value and bound have different signs.

        The best value lies between the two. Where all of that is a cost, the gap is a fraction of no less than
        ``bound``; where all of it is a gain, of no less than ``−value``.

        Example:
            >>> [Certificate(v, v, b, 9, 0.1, None).relative_gap for v, b in ((3.0, 2.0), (-2.0, -3.0), (1.0, -1.0))]
            [0.5, 0.5, None]
        """
        if not (isfinite(self.value) and isfinite(self.bound)):
            return None
        if self.gap == 0:
            return 0.0
        if self.bound > 0:
            return self.gap / self.bound
        return self.gap / -self.value if self.value < 0 else None
