"""Selectors that stand in for a run's own while blocks are asked one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor

from prunekit.masks.items import Items
from prunekit.masks.weights import Layer
from prunekit.pruning.blocks import Block
from prunekit.pruning.selector import Selector


class Noted(BaseException):
    """Ends the question to a criterion, once it has asked its selector."""

    def __init__(self, items: Items) -> None:
        self.items = items


class Noting(Selector):
    """Takes note of what there is to choose from."""

    name = "noting"

    def select(self, items: Items, budget: int) -> NoReturn:
        """Raise :class:`Noted`."""
        raise Noted(items)


class Given(Selector):
    """Chooses what has been chosen."""

    name = "given"

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._masks = masks

    def select(self, items: Items, budget: int) -> Tensor:
        """What has been chosen."""
        return torch.cat([self._masks[layer.name].reshape(-1) for layer in items.layers])


class Apart(Selector):
    """Lets a selector choose in each layer of a block by itself, by the names that the network gives them."""

    name = "apart"

    def __init__(
        self, selector: Selector, layers: Sequence[Layer], shares: Mapping[str, int], block: Block
    ) -> None:
        super().__init__()
        self._selector, self._shares = selector, shares
        named = {layer.name: replace(layer, start=0) for layer in layers}
        self._layers = {key: named[name] for key, name in block.names.items()}

    def select(self, items: Items, budget: int) -> Tensor:
        """Layer by layer, each with its share."""
        parts = []
        for layer in items.layers:
            one = replace(items.layer(layer), layers=[self._layers[layer.name]])
            parts.append(self._selector.select(one, self._shares[layer.name]))
        return torch.cat(parts)
