"""How many tokens a language model is in doubt between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunekit import Metric, SpecError

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Loss


class Perplexity(Metric):
    """``exp`` of the mean cross-entropy in nats."""

    name = "perplexity"

    def sums(self, outputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
        """The loss's own sum of terms, and its normaliser."""
        if loss.predictions(outputs, targets) is None:
            raise SpecError(f"metric 'perplexity' needs a cross-entropy, and loss {loss.name!r} is not one")
        total = loss.total(outputs, targets).double()
        return total.new_tensor([float(total), loss.normaliser(outputs, targets)])

    def value(self, sums: Sequence[float]) -> float | None:
        """Of the whole set's mean."""
        total, count = sums
        return math.exp(min(total / count, 700.0)) if count else None
