"""Random pruning, the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunekit import Criterion

if TYPE_CHECKING:
    from torch import Tensor


class Random(Criterion):
    """Uniform random saliencies, drawn anew at each step from the run's seed. Models no loss."""

    name = "random"
    requires = frozenset({"uniform"})

    def saliency(
        self, weights: Mapping[str, Tensor], statistics: Mapping[Any, Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """U(0, 1) per weight."""
        return dict(statistics["uniform"])
