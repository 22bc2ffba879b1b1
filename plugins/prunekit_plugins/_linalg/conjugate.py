"""Linear systems too large for a matrix, by conjugate gradients (Hestenes & Stiefel, 1952)."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

_DRIFT = 1e-5  # relative residuals above this are carried along without harm, in float32 too

Product = Callable[[Tensor], Tensor]


def solved(
    product: Product,
    precondition: Product,
    wanted: Tensor,
    tolerance: float,
    limit: int,
    start: Tensor | None = None,
) -> tuple[Tensor, float, int]:
    """Solve ``M x = b`` for a symmetric positive definite M.

    Where the residual that is carried along says that it is done, it is computed anew if rounding can tell the two
    apart; if they differ, the iteration starts again from there.

    Args:
        product: x to M x.
        precondition: An approximation to the inverse, symmetric positive definite.
        wanted: b, of any shape.
        tolerance: Of the residual's norm, as a share of b's.
        limit: Most products.
        start: Where to begin; zero by default.

    Returns:
        x, its relative residual (not within the tolerance if it failed), and the number of products.
    """
    size = float(wanted.norm())
    if size == 0:
        return wanted.new_zeros(wanted.shape), 0.0, 0
    direction, along, products = None, 0.0, 0
    if start is None:
        solution, residual = wanted.new_zeros(wanted.shape), wanted.clone()
    else:
        solution, residual, products = start.clone(), wanted - product(start), 1
    while True:
        left = float(residual.norm()) / size
        if left <= tolerance < _DRIFT and direction is not None:
            residual, direction = wanted - product(solution), None
            products += 1
            left = float(residual.norm()) / size
        if left <= tolerance or products >= limit or not math.isfinite(left):
            return solution, left, products
        step = precondition(residual)
        before, along = along, float((residual * step).sum())
        direction = step if direction is None else step.add_(direction, alpha=along / before)
        moved = product(direction)
        products += 1
        length = along / float((direction * moved).sum())
        solution.add_(direction, alpha=length)
        residual.sub_(moved, alpha=length)
