"""Every layer at the same sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunekit import Selector
from prunekit.masks import Layer, apportion
from prunekit_plugins.selectors import _bounds

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.masks import Items


class Layerwise(Selector):
    """The same exact total as ``global``, shared over the layers in proportion by largest remainder."""

    name = "layerwise"
    Options = _bounds.BoundOptions
    apart = True

    def check(self, layers: Sequence[Layer], budgets: Sequence[int]) -> None:
        """Refuse bounds that the schedule breaks."""
        _bounds.check(self.options, layers, budgets)

    def shares(self, layers: Sequence[Layer], gone: Sequence[int], budget: int) -> list[int]:
        """In proportion, within the bounds."""
        # A share can shrink by one as the total grows (the Alabama paradox), but never below what is gone.
        low, high = _bounds.counts(self.options, layers, gone, budget)
        return apportion(budget, [layer.size for layer in layers], low, high)

    def select(self, items: Items, budget: int) -> Tensor:
        """Prune each layer's smallest saliencies to its share."""
        import torch

        shares = self.shares(items.layers, _bounds.gone(items), budget)
        return torch.cat(
            [
                items.layer(layer).without_cheapest(share)
                for layer, share in zip(items.layers, shares, strict=True)
            ]
        )
