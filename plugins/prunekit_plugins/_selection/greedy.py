"""Which weights go, when blocks are eliminated greedily and share one budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prunekit import Context, Tensors
from prunekit.masks import FlatIndex, apportion, kth_smallest, pruned_counts, smallest
from prunekit_plugins._curvature.blocks import Blocks, Chunk
from prunekit_plugins._selection.elimination import Caps, Traces, eliminate
from prunekit_plugins._selection.pivoted import eliminate_alike

_FIRST_GUESS = 3.0  # the highest cost of a step, in those of its weights before any went
_MANY = 384  # weights of a block from which a factor of its own is cheaper than an inverse of its own


class Cut:
    """The level below which the budget's removals lie, as far as is known.

    Args:
        budget: How many are to go.
        limit: A first guess; infinite to be sure of enough.
    """

    def __init__(self, budget: int, limit: float) -> None:
        self.budget, self.limit = budget, limit
        self._levels: list[Tensor] = []
        self._count = 0

    def __call__(self, levels: Tensor) -> float:
        """Take note of levels, and say above which no more are wanted."""
        finite = levels[levels < torch.inf]
        if len(finite):
            self._levels.append(finite)
            self._count += len(finite)
        if self._count >= self.budget and len(finite):
            together = torch.cat(self._levels)
            self.limit = min(self.limit, float(kth_smallest(together, self.budget)))
            self._levels = [together[together <= self.limit]]
            self._count = len(self._levels[0])
        return self.limit

    @property
    def enough(self) -> bool:
        """Whether the budget is spent."""
        return self._count >= self.budget


def layer_budgets(
    masks: Mapping[str, Tensor], budget: int, spared: Mapping[str, Tensor] | None = None
) -> dict[str, int]:
    """Each layer's part of a budget of pruned weights: the same share of its weights, by largest remainder.

    Args:
        masks: What is kept.
        budget: Pruned afterwards, in all layers.
        spared: Weights that stay as long as there are others.
    """
    sizes = [mask.numel() for mask in masks.values()]
    gone = list(pruned_counts(masks).values())
    upper = [
        size - int((spared[name] & masks[name]).sum()) if spared and name in spared else size
        for name, size in zip(masks, sizes, strict=True)
    ]
    enough = sum(upper) >= budget
    return dict(zip(masks, apportion(budget, sizes, gone, upper if enough else None), strict=True))


def penalties(context: Context, lam: float) -> Tensor | None:
    """What is added to the cost of each weight: ``½λθ²`` in the loss's units, infinite where it is spared; or ``None``."""
    if not lam and not context.spared:
        return None
    index = FlatIndex.of(context.weights)
    found = 0.5 * lam * index.flat(context.weights, torch.float64).square()
    for layer in index.layers:
        if layer.name in context.spared:
            found[layer.part].masked_fill_(context.spared[layer.name].reshape(-1), torch.inf)
    return found


@dataclass(frozen=True)
class GreedyElimination:
    """Eliminates a step's cheapest weights, one after another, each block's inverse brought up to date in between.

    Attributes:
        blocks: With their inverses, over all kept weights.
        minimum: The model's, at a chunk's blocks.
        refresh: After so many removals from a block its inverse is computed anew.
        penalty: Added to the cost of each weight, over all weights.
        caps: Fresh limits to what may go from a chunk's blocks, which must leave room for the budgets; for blocks of
            one layer each.
    """

    blocks: Blocks
    minimum: Callable[[Chunk], Tensor]
    refresh: int
    penalty: Tensor | None = None
    caps: Callable[[Chunk], Caps] | None = None

    def masks(
        self,
        masks: Tensors,
        budget: int,
        saliency: Tensors,
        scope: str,
        spared: Tensors | None = None,
        shares: Mapping[str, int] | None = None,
    ) -> dict[str, Tensor]:
        """The masks after the step.

        Args:
            masks: Before it.
            budget: How many weights are pruned afterwards.
            saliency: The cost of each weight before any goes.
            scope: ``global``, one budget for all layers, or ``layerwise``, a share for each.
            spared: Weights that stay as long as a layer has others.
            shares: How many weights of each layer are pruned afterwards, where that is decided already.
        """
        index = FlatIndex.of(masks)
        left, costs = index.flat(masks), index.flat(saliency, torch.float64)
        if self.penalty is not None:
            costs = costs + self.penalty
        if scope == "global":
            gone = [self._cheapest_of(None, left, costs, budget - int((~left).sum()))]
        else:
            budgets = shares or layer_budgets(masks, budget, spared)
            counts = {n: budgets[n] - gone for n, gone in pruned_counts(masks).items()}
            if any(family.layer is None for family in self.blocks.families):
                gone = [self._cheapest_by_layer(index, list(counts.values()))]
            else:
                parts = {layer.name: layer.part for layer in index.layers}
                gone = [self._cheapest_of(n, left[parts[n]], costs[parts[n]], counts[n]) for n in masks]
        left[torch.cat(gone)] = False
        return index.split(left)

    def _cheapest_of(self, layer: str | None, left: Tensor, costs: Tensor, count: int) -> Tensor:
        """Flat indices of so many weights of a layer, or of all, with what is kept of it and the costs there."""
        if not count:
            return left.new_empty(0, dtype=torch.long)
        single = sum(len(f.sizes) for f in self.blocks.families if layer in (None, f.layer)) == 1
        # With one block nothing is gained by stopping early elsewhere.
        guess = torch.inf if single else _FIRST_GUESS * float(kth_smallest(costs[left], count))
        return self._cheapest(layer, count, guess, self.caps)

    def _cheapest_by_layer(self, index: FlatIndex, counts: list[int]) -> Tensor:
        """Where one block is over several layers, each with a budget of its own."""
        device = self.blocks.families[0].index.device
        layer = torch.cat([torch.full((e.size,), i, device=device) for i, e in enumerate(index.layers)])
        remaining = torch.tensor([counts], device=device)

        def caps(chunk: Chunk) -> Caps:
            return Caps(layer[chunk.index], remaining.clone())

        return self._cheapest(None, sum(counts), torch.inf, caps)

    def _cheapest(
        self, layer: str | None, count: int, guess: float, caps: Callable[[Chunk], Caps] | None
    ) -> Tensor:
        """Flat indices of what goes, the highest cost found by trying guesses."""
        limit = guess
        while True:
            cut = Cut(count, limit)
            tried = [(chunk.index, self._traces(chunk, cut, caps)) for chunk in self.blocks.chunks(layer)]
            if cut.enough or limit == torch.inf:
                break
            limit = 16 * limit if 0 < limit < 1e6 * guess else torch.inf
        chosen = smallest(torch.cat([traces.level.flatten() for _, traces in tried]), count)
        gone, start = [], 0
        for positions, traces in tried:
            part = chosen[start : start + traces.level.numel()].view_as(traces.level)
            start += part.numel()
            gone.append(positions.gather(1, traces.order.clamp(min=0))[part])
        return torch.cat(gone)

    def _traces(self, chunk: Chunk, cut: Cut, caps: Callable[[Chunk], Caps] | None) -> Traces:
        minimum, limits = self.minimum(chunk), None if caps is None else caps(chunk)
        penalty = None if self.penalty is None else chunk.at(self.penalty)
        if chunk.alike and chunk.inverse.shape[1] >= _MANY:
            return eliminate_alike(chunk.inverse[0], minimum, cut, limits, penalty)
        damped = partial(chunk.family.damped, chunk.start, chunk.stop, self.blocks.damping)
        return eliminate(chunk.inverse, minimum, chunk.there, cut, damped, self.refresh, limits, penalty)
