"""The harmonic mean of precision and recall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from prunekit import Metric, Options
from prunekit_plugins.metrics._predictions import predictions

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Loss


class F1Options(Options):
    """Options.

    Attributes:
        average: ``macro``, the mean over the classes that occur or are predicted; ``binary``, that of class 1 alone.
    """

    average: Literal["macro", "binary"] = "macro"


class F1(Metric):
    """2·right / (predicted + there), for each class."""

    name = "f1"
    Options = F1Options

    def sums(self, outputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
        """For each class how often it is predicted rightly, predicted, and there."""
        import torch

        scores, labels = predictions(self.name, outputs, targets, loss)
        classes, predicted = scores.shape[1], scores.argmax(1)
        parts = (predicted[predicted == labels], predicted, labels)
        return torch.cat([torch.bincount(part, minlength=classes) for part in parts]).double()

    def value(self, sums: Sequence[float]) -> float | None:
        """The mean, or that of class 1."""
        classes = len(sums) // 3
        right, predicted, there = (sums[i * classes : (i + 1) * classes] for i in range(3))
        each = [2 * r / (p + t) if p + t else None for r, p, t in zip(right, predicted, there, strict=True)]
        chosen = each[1:2] if self.options.average == "binary" else each
        known = [value for value in chosen if value is not None]
        return sum(known) / len(known) if known else None
