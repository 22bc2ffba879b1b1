"""Counting: how many weights a sparsity means, and how layers share them. The one place that rounds."""

from __future__ import annotations

from collections.abc import Sequence

from prunekit.errors import SpecError


def pruned_count(sparsity: float, prunable: int) -> int:
    """``round(sparsity * prunable)``, Python's rounding of the float product (half to even).

    Examples:
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

    Examples:
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
    counts, remainders = _bounded_quotas(total, sizes, low, high)
    order = sorted(range(len(sizes)), key=lambda i: (-remainders[i], i))
    left = total - sum(counts)
    while left > 0:
        for i in order:
            if left > 0 and counts[i] < high[i]:
                counts[i] += 1
                left -= 1
    return counts


def _bounded_quotas(
    total: int, sizes: Sequence[int], low: Sequence[int], high: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Proportional shares, clamped to the bounds, rounded down, and what is left of each, all in the same fraction of one.

    The shares are ratios of integers over one denominator, so nothing is rounded on the way.
    """
    fixed: dict[int, int] = {}
    while True:
        free = [i for i in range(len(sizes)) if i not in fixed]
        mass = sum(sizes[i] for i in free)
        rest = total - sum(fixed.values())
        share = {i: rest * sizes[i] for i in free}  # times the mass
        over = {i: share[i] - high[i] * mass for i in free if share[i] > high[i] * mass}
        under = {i: low[i] * mass - share[i] for i in free if share[i] < low[i] * mass}
        if not over and not under:
            parts = [
                (fixed[i], 0) if i in fixed else divmod(share[i], mass) if mass else (0, 0)
                for i in range(len(sizes))
            ]
            return [whole for whole, _ in parts], [part for _, part in parts]
        # Fix the side whose violations weigh more; the other side may recover (standard water filling).
        if sum(over.values()) >= sum(under.values()):
            fixed.update({i: high[i] for i in over})
        else:
            fixed.update({i: low[i] for i in under})
