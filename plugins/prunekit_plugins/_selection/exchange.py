"""Joint selection: which weights to keep so that a quadratic model of the loss is smallest.

The model is ``Q(w) = gᵀ(w − θ) + ½ (w − θ)ᵀ(C + αI)(w − θ)``, and ``w`` may differ from zero in a given number of
places. The places are chosen by exchange: the diagonal of C says what the cheapest kept weights would cost and the
best pruned ones would give back, given all the others as they are; some are swapped, the rest is fitted anew, and
the swap stands if it made the model smaller; if not, fewer are tried. With every weight free to move this is
iterative hard thresholding in the metric of the diagonal, with an active set (Benbaki et al., 2023). Where kept
weights are fixed, pairs are swapped one by one after that (:mod:`prunekit_plugins._selection.pairs`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunekit.masks import smallest
from prunekit_plugins._selection.pairs import best_by_pairs
from prunekit_plugins._selection.quadratic import Quadratic

_FIRST = 0.3  # of the kept weights are swapped at first, at most
_FEWER = 4  # times fewer, after a swap that made the model larger


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
    alone = removal_costs(model, model.weights, model.gradient)
    ranked = _without_cheapest(alone, open_, layers)
    kept, values = exchanged(model, open_, layers, rounds, ranked, model.weights)
    if model.moves or not rounds:
        return kept, values
    largest = _without_cheapest(model.weights.abs(), open_, layers)
    kept = best_by_pairs(model, open_, layers, rounds, [kept, ranked, largest])
    return kept, model.fitted(kept, model.weights)


def _without_cheapest(cost: Tensor, open_: Tensor, layers: Sequence[tuple[slice, int]]) -> Tensor:
    """What is kept when the cheapest of each part go."""
    kept = torch.zeros_like(open_)
    for part, count in layers:
        several = torch.where(open_[part], cost[part], -torch.inf)
        kept[part] = ~smallest(several, len(several) - count)
    return kept


def exchanged(
    model: Quadratic,
    open_: Tensor,
    layers: Sequence[tuple[slice, int]],
    rounds: int,
    kept: Tensor,
    start: Tensor,
    share: float = _FIRST,
) -> tuple[Tensor, Tensor]:
    """Swap many at a time, and fewer where that makes the model larger.

    Args:
        model: The quadratic model.
        open_: What may be kept, bool, flat.
        layers: Parts of the weights, and how many of each are kept.
        rounds: Swaps that are tried, at most.
        kept: A choice to begin with.
        start: Values from which it is fitted.
        share: Of what is kept, swapped at first, at most.

    Returns:
        What is kept, bool, and the values fitted to it; both flat.
    """
    values = model.fitted(kept, start)
    height = model.height(values)
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
