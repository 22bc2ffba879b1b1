"""Floors and ceilings on the sparsity of single layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from prunekit import Options, SpecError
from prunekit.masks.apportion import apportion
from prunekit.masks.weights import Layer

if TYPE_CHECKING:
    from torch import Tensor

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
    options: BoundOptions, layers: Sequence[Layer], gone: Sequence[int], budget: int
) -> tuple[list[int], list[int]]:
    """Least and greatest number of pruned weights of each layer at this budget.

    Floors hold at the end of the schedule; while the budget does not reach them all, what it does reach is
    shared in proportion to what each layer lacks.

    Args:
        options: The bounds.
        layers: The prunable tensors.
        gone: Weights of each layer that are pruned already; they stay pruned.
        budget: Pruned weights over all layers after the step.
    """
    low = [math.ceil(_of(options.floor, x.name, 0.0) * x.size - 1e-9) for x in layers]
    high = [math.floor(_of(options.ceiling, x.name, 1.0) * x.size + 1e-9) for x in layers]
    for a, b, layer in zip(low, high, layers, strict=True):
        if a > b:
            raise SpecError(
                f"prune.selector: {layer.name}: the floor ({a} weights) is above the ceiling ({b})"
            )
    lacking = [max(a - g, 0) for a, g in zip(low, gone, strict=True)]
    available = budget - sum(gone)
    if sum(lacking) > available:
        lacking = apportion(available, lacking)
    return (
        [g + extra for g, extra in zip(gone, lacking, strict=True)],
        [max(b, g) for b, g in zip(high, gone, strict=True)],
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
    last = max(budgets, default=0)
    total = sum(x.size for x in layers)
    low, high = counts(options, layers, [0] * len(layers), total)
    if not sum(low) <= last <= sum(high):
        raise SpecError(
            f"prune.selector: the schedule ends with {last} of {total} weights pruned, but the floors and "
            f"ceilings allow only {sum(low)} to {sum(high)}"
        )


def layers_of(masks: Mapping[str, Tensor]) -> tuple[list[Layer], list[int]]:
    """Names and shapes of the masks, and how many weights of each are gone."""
    layers = [Layer(name, tuple(m.shape)) for name, m in masks.items()]
    return layers, [int((~m).sum()) for m in masks.values()]


def _of(bounds: float | dict[str, float], name: str, default: float) -> float:
    if not isinstance(bounds, dict):
        return bounds
    return next((v for pattern, v in bounds.items() if fnmatchcase(name, pattern)), default)
