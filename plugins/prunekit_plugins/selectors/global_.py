"""One ranking over all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from prunekit import Selector
from prunekit.masks import Layer
from prunekit_plugins.selectors import _bounds

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.masks import Items


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

    def select(self, items: Items, budget: int) -> Tensor:
        """Prune up to the floors, then globally below the ceilings."""
        import torch

        if self.options.floor == 0.0 and self.options.ceiling == 1.0:
            return items.without_cheapest(budget)
        low, high = _bounds.counts(self.options, items.layers, _bounds.gone(items), budget)
        upto_floor, may_go = torch.empty_like(items.open), torch.empty_like(items.open)
        for layer, a, b in zip(items.layers, low, high, strict=True):
            one = items.layer(layer)
            upto_floor[layer.part] = one.without_cheapest(a)
            # Weights that may still go are those pruned if the layer went to its ceiling.
            may_go[layer.part] = upto_floor[layer.part] & ~one.without_cheapest(b)
        rest = replace(items, saliency=items.saliency.masked_fill(~upto_floor, -torch.inf), open=upto_floor)
        return rest.without_cheapest(budget, among=may_go)
