"""How many predictions are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunekit import Metric, SpecError

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Loss


class Accuracy(Metric):
    """1 − error: the fraction of predictions that are right; of a language model, of tokens."""

    name = "accuracy"

    def sums(self, outputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
        """Wrong ones, and all."""
        found = loss.errors(outputs, targets)
        if found is None:
            raise SpecError(
                f"metric 'accuracy': loss {loss.name!r} has no predictions that are right or wrong"
            )
        wrong, count = found
        return wrong.double().reshape(1).new_tensor([float(wrong), float(count)])

    def value(self, sums: Sequence[float]) -> float | None:
        """The fraction."""
        wrong, count = sums
        return 1 - wrong / count if count else None
