"""Random pruning, the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prunekit import Criterion, Request

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Tensors


class Random(Criterion):
    """Uniform random saliencies, redrawn at each step from the run's seed. Models no loss."""

    name = "random"
    requires = frozenset({"uniform"})

    def saliency(self, weights: Tensors, statistics: Mapping[Request, Tensors]) -> dict[str, Tensor]:
        """U(0, 1) per weight."""
        return dict(statistics["uniform"])
