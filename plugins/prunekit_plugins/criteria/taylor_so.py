"""Molchanov's second-order importance: the squared second-order change in the loss when a weight goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prunekit import Request
from prunekit_plugins.criteria.qm import QuadraticModel

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Tensors


class TaylorSecondOrder(QuadraticModel):
    """(−g·θ + ½·d·θ²)²: the square of the second-order change in the loss with a curvature diagonal.

    The published formula has θ_k (Hθ)_k in place of d_k θ_k², and its authors' code the diagonal, which is
    what removing a single weight means. Reference: Molchanov et al. (2019).
    """

    name = "taylor_so"

    def saliency(self, weights: Tensors, statistics: Mapping[Request, Tensors]) -> dict[str, Tensor]:
        """(−gθ + ½dθ²)² per weight."""
        return {k: change.square() for k, change in super().saliency(weights, statistics).items()}
