"""Counting: how many weights a sparsity means, and how layers share them. The one place that rounds."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from prunekit.errors import SpecError


def pruned_count(sparsity: float, prunable: int) -> int:
    """``round(sparsity * prunable)``, Python's rounding of the float product (half to even).

    Example:
        >>> pruned_count(0.98847, 266_200)
        263131
    """
    return round(sparsity * prunable)


def apportion(
    total: int, sizes: Sequence[int], lower: Sequence[int] | None = None, upper: Sequence[int] | None = None
) -> list[int]:
    """Share ``total`` in proportion to ``sizes`` by largest remainder, within bounds.

    Every layer gets its exact quota rounded down; what is left goes one each to the largest remainders,
    earlier layers first on ties. Layers whose quota lies outside their bounds are fixed there and the rest
    is shared among the others.

    Args:
        total: To be shared out exactly.
        sizes: Weights of each layer.
        lower: Least for each layer (default 0).
        upper: Most for each layer (default its size).

    Raises:
        SpecError: If the bounds leave no way.

    Example:
        >>> apportion(5, [10, 10, 10])
        [2, 2, 1]
        >>> apportion(5, [10, 10, 10], lower=[0, 0, 3])
        [1, 1, 3]
    """
    low = list(lower) if lower is not None else [0] * len(sizes)
    high = list(upper) if upper is not None else list(sizes)
    if not (sum(low) <= total <= sum(high)) or any(a > b for a, b in zip(low, high, strict=True)):
        raise SpecError(
            f"{total} weights cannot be pruned within the layers' bounds, which allow {sum(low)} to {sum(high)}"
        )
    share = _bounded_quotas(total, sizes, low, high)
    counts = [min(max(int(s), a), b) for s, a, b in zip(share, low, high, strict=True)]
    order = sorted(range(len(sizes)), key=lambda i: (int(share[i]) - share[i], i))
    left = total - sum(counts)
    while left > 0:
        for i in order:
            if left > 0 and counts[i] < high[i]:
                counts[i] += 1
                left -= 1
    return counts


def _bounded_quotas(
    total: int, sizes: Sequence[int], low: Sequence[int], high: Sequence[int]
) -> list[Fraction]:
    """Proportional shares in exact arithmetic, clamped to the bounds, summing to ``total``."""
    fixed: dict[int, int] = {}
    while True:
        free = [i for i in range(len(sizes)) if i not in fixed]
        mass = sum(sizes[i] for i in free)
        rest = total - sum(fixed.values())
        share = {i: Fraction(rest * sizes[i], mass) if mass else Fraction(0) for i in free}
        over = {i: share[i] - high[i] for i in free if share[i] > high[i]}
        under = {i: low[i] - share[i] for i in free if share[i] < low[i]}
        if not over and not under:
            return [Fraction(fixed[i]) if i in fixed else share[i] for i in range(len(sizes))]
        # Fix the side whose violations weigh more; the other side may recover (standard water filling).
        if sum(over.values()) >= sum(under.values()):
            fixed.update({i: high[i] for i in over})
        else:
            fixed.update({i: low[i] for i in under})
