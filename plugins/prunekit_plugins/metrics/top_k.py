"""How many labels are among the likeliest classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from prunekit import Metric, Options
from prunekit_plugins.metrics._predictions import predictions

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Loss


class TopKOptions(Options):
    """Options.

    Attributes:
        k: Number of classes.
    """

    k: int = Field(default=5, ge=1)


class TopK(Metric):
    """The fraction of predictions whose label is among the k classes with the largest scores; ties count as right."""

    name = "top_k"
    Options = TopKOptions

    def sums(self, outputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
        """Right ones, and all."""
        scores, labels = predictions(self.name, outputs, targets, loss)
        own = scores.gather(1, labels.unsqueeze(1))
        right = ((scores > own).sum(1) < self.options.k).sum()
        found: Tensor = right.double().new_tensor([float(right), float(len(labels))])
        return found

    def value(self, sums: Sequence[float]) -> float | None:
        """The fraction."""
        right, count = sums
        return right / count if count else None
