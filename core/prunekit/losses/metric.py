"""Metrics beside loss and error: sums over examples, and a number made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunekit.component import Component

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.losses.base import Loss


class Metric(Component, ABC):
    """Another measure of a network, on every split: sums that add up over batches, and a number made from them."""

    kind = "metric"

    @abstractmethod
    def sums(self, outputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
        """What one batch adds.

        Args:
            outputs: The network's.
            targets: The batch's.
            loss: The task's; its ``predictions`` are scores of classes and labels, one row for each prediction that counts.

        Returns:
            ``[k]``, k the same for every batch.

        Raises:
            SpecError: If the metric has no meaning for this loss.
        """

    @abstractmethod
    def value(self, sums: Sequence[float]) -> float | None:
        """The number, from the sums over all batches; ``None`` where there is none."""
