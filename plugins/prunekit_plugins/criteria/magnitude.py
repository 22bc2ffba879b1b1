"""Magnitude pruning: the smallest weights go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prunekit import Criterion, Request

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Tensors


class Magnitude(Criterion):
    """½θ²: isotropic curvature, no gradient (MP). Same ranking as |θ| for every λ.

    Models no loss, so it predicts no change.
    Reference: Laurent et al. (2020), section 3, with g = 0 and d = 1.
    """

    name = "magnitude"

    def saliency(self, weights: Tensors, statistics: Mapping[Request, Tensors]) -> dict[str, Tensor]:
        """Half the square of each weight, ½θ²."""
        return {k: w.square().mul_(0.5) for k, w in weights.items()}
