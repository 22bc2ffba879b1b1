"""Every layer at the same sparsity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prunekit import Selector
from prunekit.masks.apportion import apportion
from prunekit.masks.weights import Layer
from prunekit_plugins.selectors import _bounds

if TYPE_CHECKING:
    from torch import Tensor


class Layerwise(Selector):
    """The same exact total as ``global``, shared over the layers in proportion by largest remainder."""

    name = "layerwise"
    Options = _bounds.BoundOptions

    def check(self, layers: Sequence[Layer], budgets: Sequence[int]) -> None:
        """Refuse bounds that the schedule breaks."""
        _bounds.check(self.options, layers, budgets)

    def select(
        self, saliency: Mapping[str, Tensor], masks: Mapping[str, Tensor], budget: int
    ) -> dict[str, Tensor]:
        """Prune each layer's smallest saliencies to its share."""
        from prunekit.masks.select import prune_smallest

        layers, gone = _bounds.layers_of(masks)
        # A share can shrink by one as the total grows (the Alabama paradox), but never below what is gone.
        low, high = _bounds.counts(self.options, layers, gone, budget)
        shares = apportion(budget, [layer.size for layer in layers], low, high)
        return {
            name: prune_smallest({name: saliency[name]}, {name: mask}, share)[name]
            for (name, mask), share in zip(masks.items(), shares, strict=True)
        }
