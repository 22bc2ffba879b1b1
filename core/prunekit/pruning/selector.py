"""Selectors."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from prunekit.component import Component
from prunekit.masks.weights import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.masks.items import Items


class Selector(Component, ABC):
    """Spends a budget: turns saliencies into masks."""

    kind = "selector"
    apart: ClassVar[bool] = False
    """Whether it chooses within each layer separately, so that only a layer's own saliencies are compared."""

    def check(self, layers: Sequence[Layer], budgets: Sequence[int]) -> None:
        """Reject, before anything is computed, a schedule that this selector cannot follow.

        Args:
            layers: All that is prunable.
            budgets: Pruned weights after each step, as far as they are known: for an adaptive scheduler, the last.

        Raises:
            SpecError: If it contradicts the options.
        """

    def in_groups(self, values: Tensor, layer: Layer) -> Tensor | None:
        """A layer's values by the groups within which they are compared, so that a tie is one of a group.

        Args:
            values: ``[n]``, one for each of the layer's items.
            layer: With its shape and input axis.

        Returns:
            ``[…, group]``; ``None``, the default, where there are no groups.
        """
        return None

    def shares(self, layers: Sequence[Layer], gone: Sequence[int], budget: int) -> list[int] | None:
        """Each layer's part of a budget, where that does not depend on saliencies.

        Args:
            layers: All that is prunable.
            gone: Weights of each that are pruned already.
            budget: Pruned weights in all layers after the step.

        Returns:
            Pruned weights of each layer after the step; ``None``, the default, where layers compete.
        """
        return None

    @abstractmethod
    def select(self, items: Items, budget: int) -> Tensor:
        """Choose what stays.

        Args:
            items: With their saliencies; layers in ``named_parameters()`` order. Lent: nothing may be changed.
            budget: Number of pruned weights over all items after this step, including those already gone.

        Returns:
            ``[n]`` bool, True for what stays: items that are open now, all but as many as the budget asks for.
        """


def old_form(cls: type[Selector]) -> str:
    """What a selector has of prunekit 0.1, in words; empty if nothing."""
    if len(inspect.signature(cls.select).parameters) == 4:  # self, saliency, masks, budget
        now = "since 0.2 it is `select(items, budget)` (see «From 0.1» in docs/plugins.md)"
        return f"has `select(saliency, masks, budget)`: {now}"
    return ""
