"""Minima of convex functions that have kinks, by limited-memory BFGS (Nocedal, 1980; Lewis & Overton, 2013)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Function = Callable[[Tensor], tuple[float, Tensor]]
"""From a point to the value and a subgradient there."""

_PAIRS = 30
_DECREASE, _CURVATURE = 1e-4, 0.9  # of the weak Wolfe conditions
_BISECTIONS = 25
_PATIENCE = 10  # steps over which a gain is judged


@dataclass(frozen=True)
class Minimum:
    """The best point that was found.

    Attributes:
        point: Where.
        value: Of the function there.
        evaluations: Of the function, in all.
    """

    point: Tensor
    value: float
    evaluations: int


def minimised(
    function: Function, start: Tensor, length: float, gain: float, limit: int, enough: float = -math.inf
) -> Minimum:
    """Go down until it no longer pays.

    A line search by bisection to the weak Wolfe conditions copes with kinks as it is, and keeps the pairs of curvature
    positive. Where it fails, the pairs are forgotten; where it fails without any, that is the end.

    Args:
        function: Convex.
        start: A vector.
        length: Of the first step, in gradients.
        gain: The end, too: ten steps that gain less than this share of the value.
        limit: Most evaluations.
        enough: A value below which it need not go.

    Examples:
        >>> import torch
        >>> kink = lambda x: (float(x.abs().sum() + x.square().sum()), x.sign() + 2 * x)
        >>> minimised(kink, torch.tensor([3.0, -0.7], dtype=torch.float64), 0.3, 1e-9, 200).value < 1e-6
        True
    """
    search = _Search(function, limit)
    point = start
    value, slope = search(point)
    pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=_PAIRS)
    history = [value]
    while search.evaluations < limit and math.isfinite(value) and value > enough:
        direction = _direction(slope, pairs, length)
        found = search.line(point, value, slope, direction)
        if found is None:
            if not pairs:
                break
            pairs.clear()
            continue
        moved, reached, steeper = found
        change, turn = moved - point, steeper - slope
        curved = float(change @ turn)
        if curved > 0:
            pairs.append((change, turn, curved))
        point, value, slope = moved, reached, steeper
        history.append(value)
        if len(history) > _PATIENCE and history[-1 - _PATIENCE] - value < gain * abs(value):
            break
    return Minimum(search.best, search.least, search.evaluations)


class _Search:
    """Evaluates, counts, and remembers the best."""

    def __init__(self, function: Function, limit: int) -> None:
        self.function, self.limit = function, limit
        self.evaluations, self.least = 0, math.inf
        self.best: Tensor

    def __call__(self, point: Tensor) -> tuple[float, Tensor]:
        value, slope = self.function(point)
        self.evaluations += 1
        if value < self.least or self.evaluations == 1:
            self.best, self.least = point, value
        return value, slope

    def line(
        self, point: Tensor, value: float, slope: Tensor, direction: Tensor
    ) -> tuple[Tensor, float, Tensor] | None:
        """A point along the direction at which the weak Wolfe conditions hold; ``None`` if none is found."""
        descent = float(slope @ direction)
        if not descent < 0:
            return None
        low, high, step = 0.0, math.inf, 1.0
        for _ in range(_BISECTIONS):
            if self.evaluations >= self.limit:
                return None
            moved = point + step * direction
            reached, steeper = self(moved)
            if not reached <= value + _DECREASE * step * descent:
                high = step
            elif float(steeper @ direction) < _CURVATURE * descent:
                low = step
            else:
                return moved, reached, steeper
            step = 2 * low if math.isinf(high) else (low + high) / 2
        return None


def _direction(slope: Tensor, pairs: deque[tuple[Tensor, Tensor, float]], length: float) -> Tensor:
    """Minus the inverse Hessian that the pairs tell of, times the slope, by the two-loop recursion."""
    direction = -slope
    if not pairs:
        return direction.mul_(length)
    shares = []
    for change, turn, curved in reversed(pairs):
        share = float(change @ direction) / curved
        shares.append(share)
        direction.sub_(turn, alpha=share)
    _, turn, curved = pairs[-1]
    direction.mul_(curved / float(turn @ turn))
    for (change, turn, curved), share in zip(pairs, reversed(shares), strict=True):
        direction.add_(change, alpha=share - float(turn @ direction) / curved)
    return direction
