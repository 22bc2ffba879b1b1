"""Conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    wanted: Tensor,
    start: Tensor,
    scale: Tensor,
    tolerance: float,
    iterations: int,
) -> tuple[Tensor, float, int]:
    """Solve ``A x = b`` for a symmetric positive definite A known by its products.

    Args:
        product: ``A v``.
        wanted: b, flat.
        start: Where to begin.
        scale: The diagonal of A, to precondition with; 1 where A and b are zero.
        tolerance: Of the residual, relative to b's, both in the norm of the preconditioner.
        iterations: At most.

    Returns:
        x, the relative residual reached, and the iterations taken.
    """
    x = start.clone()
    residual = wanted - product(x)
    goal = tolerance**2 * float((wanted.square() / scale).sum())
    solved = residual / scale
    size = float(residual @ solved)
    direction = solved
    taken = 0
    while size > goal and taken < iterations:
        moved = product(direction)
        step = size / float(direction @ moved)
        x = torch.add(x, direction, alpha=step)
        residual = torch.sub(residual, moved, alpha=step)
        solved = residual / scale
        before, size = size, float(residual @ solved)
        direction = torch.add(solved, direction, alpha=size / before)
        taken += 1
    return x, (size / goal) ** 0.5 * tolerance if goal else 0.0, taken
