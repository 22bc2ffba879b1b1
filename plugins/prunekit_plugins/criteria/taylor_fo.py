"""Molchanov's first-order importance: the squared first-order change in the loss when a weight goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prunekit import Request
from prunekit_plugins.criteria.lm import LinearModel

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Tensors


class TaylorFirstOrder(LinearModel):
    """(g·θ)²: the square of the first-order change in the loss. Ranks as ``lm`` does while λ = 0.

    With λ it differs: the penalty is added to a square. Reference: Molchanov et al. (2019).
    """

    name = "taylor_fo"

    def saliency(self, weights: Tensors, statistics: Mapping[Request, Tensors]) -> dict[str, Tensor]:
        """(gθ)², the square of each weight times its gradient."""
        return {k: change.square() for k, change in super().saliency(weights, statistics).items()}
