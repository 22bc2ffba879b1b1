"""Selectors on tensors by name, as a step uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

import prunekit as pk
from prunekit.masks import FlatIndex, Items, Layer
from prunekit.plugins.build import component
from prunekit.statistics import Estimates


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


def propose(
    criterion: pk.Criterion,
    weights: Mapping[str, Tensor],
    statistics: pk.Statistics,
    masks: Mapping[str, Tensor],
    budget: int,
    lam: float = 0.0,
) -> pk.Proposal:
    """What a criterion proposes, with the global selector beside it."""
    selector: pk.Selector = component("selector", "global")
    layers = FlatIndex.of(weights).layers
    return criterion.propose(pk.Context(weights, Estimates(statistics), masks, budget, lam, selector, layers))
