"""How far along a line a Taylor polynomial can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import factorial

import numpy as np
from numpy.polynomial import Polynomial

_REAL = 1e-6  # of a root's size, as which an imaginary part is rounding


def remainder(derivatives: Sequence[float], order: int, change: float) -> float:
    """What a polynomial of an order leaves of a change: ``f(1) − f(0) − Σ_(1≤k≤order) f⁽ᵏ⁾(0)/k!``.

    Args:
        derivatives: Of f at 0, from order 0.
        order: Of the polynomial.
        change: ``f(1) − f(0)``.

    Examples:
        >>> remainder([1.0, 2.0, 3.0], 1, 4.0)
        2.0
    """
    return change - sum(value / factorial(k) for k, value in enumerate(derivatives) if 0 < k <= order)


def radius(derivatives: Sequence[float], order: int, relative: float, absolute: float, limit: float) -> float:
    """The largest t up to which a polynomial of an order stays within a tolerance of the one of all derivatives.

    ``|Σ_(k>order) f⁽ᵏ⁾tᵏ/k!| ≤ absolute + relative·|Σ_(1≤k≤order) f⁽ᵏ⁾tᵏ/k!|`` for all times from 0 to t.

    Args:
        derivatives: Of f at 0, from order 0.
        order: Of the polynomial.
        relative: Part of the change that the polynomial predicts.
        absolute: In the loss's units.
        limit: The largest t of interest.

    Examples:
        >>> radius([0.0, 1.0, 0.5], 1, 0.0, 0.01, 4.0)  # t²/4 = 0.01
        0.2
    """
    terms = [0.0, *(value / factorial(k) for k, value in enumerate(derivatives) if k)]
    model = Polynomial(terms[: order + 1])
    rest = Polynomial([*[0.0] * (order + 1), *terms[order + 1 :]])

    def excess(t: float) -> float:
        return float(abs(rest(t)) - absolute - relative * abs(model(t)))

    limits = [absolute + model * relative, absolute - model * relative]
    crossings = {t for side in (rest, -rest) for bound in limits for t in _roots(side - bound) if t < limit}
    for start, stop in pairwise([0.0, *sorted(crossings), limit]):
        if excess((start + stop) / 2) > 0:
            return start
    return limit


def _roots(polynomial: Polynomial) -> list[float]:
    """The positive real ones."""
    trimmed = polynomial.trim()
    if trimmed.degree() < 1:
        return []
    roots = np.atleast_1d(trimmed.roots())
    return [float(r.real) for r in roots if abs(r.imag) <= _REAL * abs(r) and r.real > 0]
