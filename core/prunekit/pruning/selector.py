"""Selectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunekit.component import Component, Tensors
from prunekit.masks.weights import Layer

if TYPE_CHECKING:
    from torch import Tensor


class Selector(Component, ABC):
    """Spends a budget: turns saliencies into masks."""

    kind = "selector"

    def check(self, layers: Sequence[Layer], budgets: Sequence[int]) -> None:
        """Refuse, before anything is computed, a schedule that this selector cannot follow.

        Raises:
            SpecError: If it contradicts the options.
        """

    @abstractmethod
    def select(self, saliency: Tensors, masks: Tensors, budget: int) -> dict[str, Tensor]:
        """Return masks with exactly ``budget`` weights pruned in all, none of them revived.

        Args:
            saliency: One finite tensor per parameter, in ``named_parameters()`` order.
            masks: What is kept now; weights already pruned are never ranked.
            budget: Number of pruned weights over all tensors after this step.
        """
