"""What a selector chooses among: items with a saliency and a size. A weight is the smallest item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prunekit.masks.fill import fill_
from prunekit.masks.select import cheapest
from prunekit.masks.weights import FlatIndex, Layer


@dataclass(frozen=True)
class Items:
    """Items of all layers, one layer after another.

    Attributes:
        saliency: ``[n]``; the cost of losing each item: finite where it is open, -inf where it is gone.
        open: ``[n]`` bool, True for what is kept now and may go.
        layers: Where each layer's items are (``layer.part``), with its shape and input axis.
        sizes: ``[n]``, the weights of each item; ``None`` where every item is one weight.
    """

    saliency: Tensor
    open: Tensor
    layers: Sequence[Layer]
    sizes: Tensor | None = None

    @classmethod
    def of(
        cls, saliency: Mapping[str, Tensor], masks: Mapping[str, Tensor], layers: Sequence[Layer]
    ) -> Items:
        """Every weight of some layers as an item.

        Args:
            saliency: One tensor per layer.
            masks: What is kept now.
            layers: In the order of the model's parameters.
        """
        device = masks[layers[0].name].device
        total = layers[-1].part.stop
        dtypes = {saliency[layer.name].dtype for layer in layers}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float64  # which holds every value of the others
        values = torch.empty(total, dtype=dtype, device=device)
        parts = [masks[layer.name].reshape(-1).to(device) for layer in layers]
        for layer in layers:
            values[layer.part] = saliency[layer.name].detach().reshape(-1)
        open_ = parts[0] if len(parts) == 1 else torch.cat(parts)  # of one layer no copy
        fill_(values, ~open_, -torch.inf)
        return cls(values, open_, layers)

    @property
    def gone(self) -> int:
        """Weights of the items that are not open."""
        if self.sizes is None:
            return len(self.open) - int(self.open.count_nonzero())
        return int(self.sizes[~self.open].sum())

    def layer(self, layer: Layer) -> Items:
        """The items of one layer alone."""
        sizes = None if self.sizes is None else self.sizes[layer.part]
        alone = replace(layer, start=0)
        return Items(self.saliency[layer.part], self.open[layer.part], [alone], sizes)

    def without_cheapest(self, budget: int, among: Tensor | None = None) -> Tensor:
        """What stays open when the cheapest go, until ``budget`` weights are gone, including those gone before.

        Of equal saliencies the earlier item goes first. Items larger than a weight go whole, in this order, as long
        as they fit.

        Args:
            budget: At least as many as are already gone.
            among: ``[n]`` bool; only these may go.
        """
        values = self.saliency
        if among is not None:
            values = values.masked_fill(self.open & ~among, torch.inf)
        return cheapest(values, budget, self.sizes).logical_not_()

    def masks(self, kept: Tensor) -> dict[str, Tensor]:
        """A choice as masks of the layers, each with memory of its own; items must be weights."""
        return {x.name: kept[x.part].view(x.shape).clone() for x in self.layers}


def prune_smallest(
    saliency: Mapping[str, Tensor], masks: Mapping[str, Tensor], budget: int
) -> dict[str, Tensor]:
    """Prune the smallest saliencies over all tensors together until ``budget`` weights are pruned.

    Only kept weights are ranked. Of tied ones the earlier tensor, then the lower flat index, goes first.
    Extra memory: one copy of the saliencies, and bool vectors of that length.

    Args:
        saliency: Finite tensors.
        masks: What is kept now, in the order of the model's parameters.
        budget: Pruned weights afterwards, at least as many as now.

    Returns:
        New masks, each on the device of the old one.

    Examples:
        >>> s = {"w": torch.tensor([0.3, 0.1, 0.1, 0.9])}
        >>> prune_smallest(s, {"w": torch.ones(4, dtype=torch.bool)}, 1)["w"].tolist()
        [True, False, True, True]
    """
    if not masks:
        return {}
    items = Items.of(saliency, masks, FlatIndex.of(masks).layers)
    new_masks = items.masks(items.without_cheapest(budget))
    return {name: mask.to(masks[name].device) for name, mask in new_masks.items()}
