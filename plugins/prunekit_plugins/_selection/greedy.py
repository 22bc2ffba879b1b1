"""Which weights go, when blocks are eliminated greedily and share one budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from prunekit import Context
from prunekit.masks import FlatIndex, apportion, kth_smallest, smallest
from prunekit_plugins._curvature.blocks import Blocks, Chunk
from prunekit_plugins._selection.elimination import Caps, Traces, eliminate

_FIRST_GUESS = 3.0  # the highest cost of a step, in those of its weights before any went


class Cut:
    """The level below which the budget's removals lie, as far as is known.

    Args:
        budget: How many are to go.
        limit: A first guess; infinite to be sure of enough.
    """

    def __init__(self, budget: int, limit: float) -> None:
        self.budget, self.limit = budget, limit
        self._found: list[Tensor] = []
        self._count = 0

    def __call__(self, levels: Tensor) -> float:
        """Take note of levels, and say above which no more are wanted."""
        found = levels[levels < torch.inf]
        if len(found):
            self._found.append(found)
            self._count += len(found)
        if self._count >= self.budget and len(found):
            together = torch.cat(self._found)
            self.limit = min(self.limit, float(kth_smallest(together, self.budget)))
            self._found = [together[together <= self.limit]]
            self._count = len(self._found[0])
        return self.limit

    @property
    def enough(self) -> bool:
        """Whether the budget is spent."""
        return self._count >= self.budget


def layer_budgets(masks: Mapping[str, Tensor], budget: int) -> dict[str | None, int]:
    """Each layer's part of a budget of pruned weights: the same share of its weights, by largest remainder."""
    sizes = [mask.numel() for mask in masks.values()]
    gone = [mask.numel() - int(mask.count_nonzero()) for mask in masks.values()]
    return dict(zip(masks, apportion(budget, sizes, lower=gone), strict=True))


def eliminated(
    context: Context,
    blocks: Blocks,
    minimum: Callable[[Chunk], Tensor],
    saliency: Mapping[str, Tensor],
    scope: str,
    refresh: int,
    damps: bool,
    caps: Callable[[Chunk], Caps] | None = None,
) -> dict[str, Tensor]:
    """The masks of a step by greedy elimination; see :func:`greedy`.

    Args:
        context: The step.
        blocks: With their inverses, over all kept weights.
        minimum: The model's, at a chunk's blocks.
        saliency: The cost of each weight before any goes.
        scope: ``global``, one budget for all layers, or ``layerwise``, a share for each.
        refresh: After so many removals from a block its inverse is computed anew.
        damps: Whether λ is damping; where it is not, ½λθ² is added to each weight's cost.
        caps: See :func:`greedy`.
    """
    index = FlatIndex.of(context.weights)
    penalty = None
    if context.lam and not damps:
        penalty = 0.5 * context.lam * index.flat(context.weights, torch.float64).square()
    budgets: dict[str | None, int] = {None: context.budget}
    if scope == "layerwise":
        budgets = layer_budgets(context.masks, context.budget)
    costs = index.flat(saliency, torch.float64)
    left = index.flat(context.masks)
    left[greedy(blocks, minimum, costs, context.masks, budgets, refresh, caps, penalty)] = False
    return index.split(left)


def greedy(
    blocks: Blocks,
    values: Callable[[Chunk], Tensor],
    saliency: Tensor,
    masks: Mapping[str, Tensor],
    budgets: Mapping[str | None, int],
    refresh: int,
    caps: Callable[[Chunk], Caps] | None = None,
    penalty: Tensor | None = None,
) -> Tensor:
    """Eliminate the cheapest weights, one after another, each block's inverse brought up to date in between.

    Args:
        blocks: With their inverses, over all kept weights.
        values: The model's minimum at a chunk's blocks.
        saliency: The cost of each weight before any goes, over all weights.
        masks: What is kept now.
        budgets: How many weights are pruned afterwards, by layer, or in all (``None``).
        refresh: See :func:`eliminate`.
        caps: Fresh limits to what may go from a chunk's blocks, which must leave room for the budgets; for blocks
            of one layer each.
        penalty: Added to the cost of each weight, over all weights.

    Returns:
        Flat indices of what goes, over all weights.
    """
    left = torch.cat([mask.flatten() for mask in masks.values()])
    gone = [left.new_empty(0, dtype=torch.long)]
    if None not in budgets and any(family.layer is None for family in blocks.families):
        return _shared(blocks, values, masks, budgets, refresh, penalty)
    if penalty is not None:
        saliency = saliency + penalty
    start = 0
    for layer, budget in budgets.items():
        stop = start + (len(left) if layer is None else masks[layer].numel())
        kept = left[start:stop]
        count = budget - int((~kept).sum())
        if count:
            single = sum(len(f.sizes) for f in blocks.families if layer in (None, f.layer)) == 1
            # With one block nothing is gained by stopping early elsewhere.
            highest = kth_smallest(saliency[start:stop][kept], count)
            guess = torch.inf if single else _FIRST_GUESS * float(highest)
            gone.append(_cheapest(blocks, values, count, guess, refresh, layer, caps, penalty))
        start = stop
    return torch.cat(gone)


def _shared(
    blocks: Blocks,
    values: Callable[[Chunk], Tensor],
    masks: Mapping[str, Tensor],
    budgets: Mapping[str | None, int],
    refresh: int,
    penalty: Tensor | None,
) -> Tensor:
    """One block over several layers, each with a budget of its own."""
    numbers = [torch.full((m.numel(),), i, device=m.device) for i, m in enumerate(masks.values())]
    layer = torch.cat(numbers)
    quota = [budgets[name] - int((~mask).sum()) for name, mask in masks.items()]
    remaining = torch.tensor([quota], device=layer.device)

    def caps(chunk: Chunk) -> Caps:
        return Caps(layer[chunk.index], remaining.clone())

    return _cheapest(blocks, values, sum(quota), torch.inf, refresh, None, caps, penalty)


def _cheapest(
    blocks: Blocks,
    values: Callable[[Chunk], Tensor],
    budget: int,
    guess: float,
    refresh: int,
    layer: str | None,
    caps: Callable[[Chunk], Caps] | None,
    penalty: Tensor | None,
) -> Tensor:
    limit = guess
    while True:
        cut = Cut(budget, limit)
        found: list[tuple[Tensor, Traces]] = []
        for chunk in blocks.chunks(layer):
            damped = partial(chunk.family.damped, chunk.start, chunk.stop, blocks.damping)
            limits = None if caps is None else caps(chunk)
            extra = None if penalty is None else chunk.at(penalty)
            traces = eliminate(chunk.inverse, values(chunk), chunk.there, cut, damped, refresh, limits, extra)
            found.append((chunk.index, traces))
        if cut.enough or limit == torch.inf:
            break
        limit = 16 * limit if 0 < limit < 1e6 * guess else torch.inf
    chosen = smallest(torch.cat([traces.level.flatten() for _, traces in found]), budget)
    gone, start = [], 0
    for index, traces in found:
        part = chosen[start : start + traces.level.numel()].view_as(traces.level)
        start += part.numel()
        gone.append(index.gather(1, traces.order.clamp(min=0))[part])
    return torch.cat(gone)
