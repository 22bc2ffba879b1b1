"""Joint selection: which weights to keep so that a quadratic model of the loss is smallest.

The model is ``Q(w) = gᵀ(w − θ) + ½ (w − θ)ᵀ(C + αI)(w − θ)``, and ``w`` may differ from zero in a given number of
places. The places are chosen by exchange: the diagonal of C says what the cheapest kept weights would cost and the
best pruned ones would give back, given all the others as they are; some are swapped, the rest is fitted anew, and
the swap stands if it made the model smaller; if not, fewer are tried. With every weight free to move this is
iterative hard thresholding in the metric of the diagonal, with an active set (Benbaki et al., 2023); with fixed
weights it is the local search of Yu et al. (2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from prunekit.masks import smallest
from prunekit_plugins._curvature.jacobian_factors import Factors
from prunekit_plugins._linalg.conjugate import solved

_FIRST = 0.3  # of the kept weights are swapped at first, at most
_FEWER = 4  # times fewer, after a swap that made the model larger


@dataclass(frozen=True)
class Quadratic:
    """The quadratic model.

    Attributes:
        factors: C.
        weights: θ, flat, float64.
        gradient: g, flat; zeros where it is left out.
        damping: α.
        moves: Whether kept weights are free, or stay at θ.
        tolerance: Of a fit: its residual, relative.
        iterations: Of a fit, at most.
    """

    factors: Factors
    weights: Tensor
    gradient: Tensor
    damping: float
    moves: bool
    tolerance: float
    iterations: int

    @cached_property
    def diagonal(self) -> Tensor:
        """Of C + αI."""
        return torch.cat([t.flatten() for t in self.factors.values()]) + self.damping

    @cached_property
    def wanted(self) -> Tensor:
        """(C + αI) θ − g: where the model has its minimum, (C + αI) w is that."""
        return self.factors.product(self.weights) + self.damping * self.weights - self.gradient

    def slope(self, values: Tensor) -> Tensor:
        """The model's gradient ∇Q at the given values of the weights."""
        change = values - self.weights
        return self.gradient + self.factors.product(change) + self.damping * change

    def height(self, values: Tensor) -> float:
        """The model's value Q at the given values of the weights."""
        change = values - self.weights
        curved = self.factors.curved(change) + self.damping * float(change @ change)
        return float(self.gradient @ change) + 0.5 * curved

    def change(self, values: Tensor) -> float:
        """``gᵀΔ + ½ ΔᵀCΔ`` from the weights to other values, without damping."""
        change = values - self.weights
        return float(self.gradient @ change) + 0.5 * self.factors.curved(change)

    def fitted(self, kept: Tensor, start: Tensor) -> Tensor:
        """The values with the smallest Q that are zero outside ``kept``."""
        if not self.moves:
            return self.weights * kept
        scale = torch.where(kept, self.diagonal, 1.0)
        values, _, _ = solved(
            lambda v: torch.where(kept, self.factors.product(v) + self.damping * v, 0.0),
            lambda v: v / scale,
            torch.where(kept, self.wanted, 0.0),
            self.tolerance,
            self.iterations,
            torch.where(kept, start, 0.0),
        )
        return values


def search(
    model: Quadratic, open_: Tensor, layers: Sequence[tuple[slice, int]], rounds: int
) -> tuple[Tensor, Tensor]:
    """Choose what is kept.

    Args:
        model: The quadratic model.
        open_: What may be kept, bool, flat.
        layers: Parts of the weights, and how many of each are kept.
        rounds: Swaps that are tried, at most.

    Returns:
        What is kept, bool, and the values fitted to it; both flat.
    """
    kept = torch.zeros_like(open_)
    alone = removal_costs(model, model.weights, model.gradient)
    for part, count in layers:
        cost = alone[part]
        kept[part] = ~smallest(torch.where(open_[part], cost, -torch.inf), len(cost) - count)
    values = model.fitted(kept, model.weights)
    height, share = model.height(values), _FIRST
    for _ in range(rounds):
        slope = model.slope(values)
        cost = removal_costs(model, values, slope)
        gain = _gains_of_return(model, slope)
        swapped, most = kept.clone(), 0
        for part, count in layers:
            number = _swap(swapped[part], open_[part], cost[part], gain[part], max(1, int(share * count)))
            most = max(most, number)
        if not most:
            break
        tried = model.fitted(swapped, values)
        tried_height = model.height(tried)
        if tried_height < height:
            kept, values, height = swapped, tried, tried_height
        elif most == 1:
            break
        else:
            share = min(share, most / max(1, int(kept.count_nonzero()))) / _FEWER
    return kept, values


def removal_costs(model: Quadratic, values: Tensor, slope: Tensor) -> Tensor:
    """By how much Q rises when a weight is set to zero: with others as they are, from where it would best be."""
    if not model.moves:
        return 0.5 * model.diagonal * values.square() - slope * values
    return 0.5 * model.diagonal * (values - slope / model.diagonal).square()


def _gains_of_return(model: Quadratic, slope: Tensor) -> Tensor:
    """By how much Q falls when a weight that is zero comes back."""
    if not model.moves:
        return -(slope * model.weights + 0.5 * model.diagonal * model.weights.square())
    return slope.square() / (2 * model.diagonal)


def _swap(kept: Tensor, open_: Tensor, cost: Tensor, gain: Tensor, most: int) -> int:
    """Swap the cheapest kept weights for the best others while that should pay; in place. Returns how many."""
    outside = open_ & ~kept
    most = min(most, int(kept.count_nonzero()), int(outside.count_nonzero()))
    if not most:
        return 0
    leaving = torch.where(kept, cost, torch.inf).topk(most, largest=False)
    coming = torch.where(outside, gain, -torch.inf).topk(most)
    number = int((coming.values > leaving.values).count_nonzero())
    kept[leaving.indices[:number]] = False
    kept[coming.indices[:number]] = True
    return number
