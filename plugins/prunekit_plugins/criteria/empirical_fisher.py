"""Squared gradients as curvature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunekit import Criterion
from prunekit_plugins.criteria import _pruned

if TYPE_CHECKING:
    from torch import Tensor


class EmpiricalFisher(Criterion):
    """½·F·θ² with F the diagonal of the empirical Fisher: ``obd`` with that curvature, under its usual name.

    Reference: Theis et al. (2018), Fisher pruning.
    """

    name = "empirical_fisher"
    requires = frozenset({"empirical_fisher_diagonal"})

    def saliency(
        self, weights: Mapping[str, Tensor], statistics: Mapping[Any, Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """½Fθ² per weight."""
        diagonal = statistics["empirical_fisher_diagonal"]
        return {k: 0.5 * diagonal[k] * w.square() for k, w in weights.items()}

    def predicted_delta_loss(
        self,
        weights: Mapping[str, Tensor],
        statistics: Mapping[Any, Mapping[str, Tensor]],
        masks: Mapping[str, Tensor],
    ) -> float:
        """Σ ½Fθ² over the weights that go, in nats."""
        return _pruned.total(self.saliency(weights, statistics), masks)
