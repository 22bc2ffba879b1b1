"""Selectors on tensors by name, as a step uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

import prunekit as pk
from prunekit.masks import FlatIndex, Items, Layer


def choose(
    selector: pk.Selector,
    saliency: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    budget: int,
    layers: Sequence[Layer] | None = None,
) -> dict[str, Tensor]:
    """Masks after spending a budget."""
    items = Items.of(saliency, masks, layers or FlatIndex.of(masks).layers)
    return items.masks(selector.select(items, budget))
