"""Floors and ceilings on the sparsity of single layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from prunekit import Options, SpecError
from prunekit.masks import Layer, apportion

if TYPE_CHECKING:
    from prunekit.masks import Items

Fraction = Annotated[float, Field(ge=0, le=1)]


class BoundOptions(Options):
    """Options of selectors with bounds per layer.

    Attributes:
        floor: Least sparsity of a layer: a number for all, or name patterns with numbers (the first
            pattern that matches counts).
        ceiling: Greatest sparsity of a layer, in the same form. 1 lets a whole layer go.
    """

    floor: Fraction | dict[str, Fraction] = 0.0
    ceiling: Fraction | dict[str, Fraction] = 1.0


def counts(
    options: BoundOptions, layers: Sequence[Layer], pruned: Sequence[int], budget: int
) -> tuple[list[int], list[int]]:
    """Least and greatest number of pruned weights of each layer at this budget.

    Floors hold at the end of the schedule; while the budget does not reach them all, what it does reach is
    shared in proportion to what each layer lacks.

    Args:
        options: The bounds.
        layers: The prunable tensors.
        pruned: Weights of each layer that are pruned already; they stay pruned.
        budget: Pruned weights over all layers after the step.
    """
    low = [math.ceil(_of(options.floor, x.name, 0.0) * x.size - 1e-9) for x in layers]
    high = [math.floor(_of(options.ceiling, x.name, 1.0) * x.size + 1e-9) for x in layers]
    for a, b, layer in zip(low, high, layers, strict=True):
        if a > b:
            raise SpecError(
                f"prune.selector: {layer.name}: the floor ({a} weights) is above the ceiling ({b})"
            )
    lacking = [max(a - g, 0) for a, g in zip(low, pruned, strict=True)]
    available = budget - sum(pruned)
    if sum(lacking) > available:
        lacking = apportion(available, lacking)
    return (
        [g + extra for g, extra in zip(pruned, lacking, strict=True)],
        [max(b, g) for b, g in zip(high, pruned, strict=True)],
    )


def check(options: BoundOptions, layers: Sequence[Layer], budgets: Sequence[int]) -> None:
    """Refuse bounds that name no layer or that the last level breaks.

    Raises:
        SpecError: Saying which, and what would be possible.
    """
    for field in ("floor", "ceiling"):
        bounds = getattr(options, field)
        for pattern in bounds if isinstance(bounds, dict) else ():
            if not any(fnmatchcase(x.name, pattern) for x in layers):
                raise SpecError(
                    f"prune.selector.{field}: {pattern!r} matches no prunable tensor; "
                    f"there are {', '.join(x.name for x in layers)}"
                )
    if not budgets:
        return
    last = max(budgets)
    total = sum(x.size for x in layers)
    low, high = counts(options, layers, [0] * len(layers), total)
    if not sum(low) <= last <= sum(high):
        raise SpecError(
            f"prune.selector: the schedule ends with {last} of {total} weights pruned, but the floors and "
            f"ceilings allow only {sum(low)} to {sum(high)}"
        )


def gone(items: Items) -> list[int]:
    """How many weights of each layer are gone."""
    return [items.layer(layer).gone for layer in items.layers]


def _of(bounds: float | dict[str, float], name: str, default: float) -> float:
    if not isinstance(bounds, dict):
        return bounds
    return next((v for pattern, v in bounds.items() if fnmatchcase(name, pattern)), default)
