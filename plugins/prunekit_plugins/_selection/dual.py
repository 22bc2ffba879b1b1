"""Joint selection by the dual: what stays where the bound is largest, fitted, and swapped on where that is not enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from prunekit_plugins._curvature.rows import Rows
from prunekit_plugins._selection.exchange import exchanged
from prunekit_plugins._selection.joint import Joint, relaxed
from prunekit_plugins._selection.quadratic import Quadratic

FIT = 1e-4
"""Relative residual of a fit, at most: the choice is closer to the best one than a rougher fit would tell."""

_ENOUGH = 1e-3  # of the bound: a gap below which no swaps are tried
_FIRST = 0.03  # of the kept weights are swapped at first, where they are


def search(
    model: Quadratic, open_: Tensor, layers: Sequence[tuple[slice, int]], rounds: int
) -> tuple[Tensor, Tensor]:
    """Choose what is kept.

    Args:
        model: The quadratic model, whose kept weights are free.
        open_: What may be kept, bool, flat.
        layers: Parts of the weights, and how many of each are kept.
        rounds: Swaps that are tried, at most, where the dual's choice is not within a thousandth of its bound.

    Returns:
        What is kept, bool, and the values fitted to it; both flat.
    """
    model = replace(model, tolerance=min(model.tolerance, FIT))
    problem = Joint(Rows(model.factors), model.weights, model.gradient, model.damping, open_, layers)
    found = relaxed(problem)
    values = model.fitted(found.kept, found.values)
    gap = model.height(values) - found.bound
    if rounds and not gap <= _ENOUGH * abs(found.bound):
        return exchanged(model, open_, layers, rounds, found.kept, values, _FIRST)
    return found.kept, values
