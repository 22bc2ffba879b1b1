"""One ranking over all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prunekit import Selector
from prunekit.masks.weights import Layer
from prunekit_plugins.selectors import _bounds

if TYPE_CHECKING:
    from torch import Tensor


class Global(Selector):
    """The smallest saliencies go, wherever they are; with floors and ceilings, the smallest that may.

    Layers keep within their bounds: each layer's smallest weights up to its floor go first, none beyond
    its ceiling, and the rest of the budget is one global ranking. That is the choice of least total
    saliency under the bounds (they form a matroid, so greedy is exact).
    """

    name = "global"
    Options = _bounds.BoundOptions

    def check(self, layers: Sequence[Layer], budgets: Sequence[int]) -> None:
        """Refuse bounds that the schedule breaks."""
        _bounds.check(self.options, layers, budgets)

    def select(
        self, saliency: Mapping[str, Tensor], masks: Mapping[str, Tensor], budget: int
    ) -> dict[str, Tensor]:
        """Prune up to the floors, then globally below the ceilings."""
        from prunekit.masks.select import prune_smallest

        if self.options.floor == 0.0 and self.options.ceiling == 1.0:
            return prune_smallest(saliency, masks, budget)
        low, high = _bounds.counts(self.options, *_bounds.layers_of(masks), budget)
        new, open_ = {}, {}
        for (name, mask), a, b in zip(masks.items(), low, high, strict=True):
            one = {name: saliency[name]}
            new[name] = prune_smallest(one, {name: mask}, a)[name]
            # Weights that may still go are those pruned if the layer went to its ceiling.
            open_[name] = new[name] & ~prune_smallest(one, {name: mask}, b)[name]
        rest = budget - sum(low)
        closed = sum(int((~m).sum()) for m in open_.values())
        left = prune_smallest(saliency, open_, closed + rest)
        return {name: new[name] & (left[name] | ~open_[name]) for name in masks}
