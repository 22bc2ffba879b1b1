"""Optimal Brain Damage: diagonal second-order saliency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunekit import Criterion, Statistic
from prunekit_plugins.criteria import _pruned
from prunekit_plugins.criteria._curvature import CurvatureOptions

if TYPE_CHECKING:
    from torch import Tensor


class OptimalBrainDamage(Criterion):
    """|½·d·θ²|: the gradient is taken to be zero, as at the end of training.

    Reference: LeCun, Denker & Solla (1990), OBD procedure, step 4, ``s_k = h_kk u_k² / 2``, with the
    diagonal of the Gauss-Newton matrix for h_kk by default (Laurent et al., 2020, section 3). The absolute
    value matters only for curvatures that can be negative.
    """

    name = "obd"
    Options = CurvatureOptions

    @property
    def diagonal(self) -> Statistic:
        """The statistic that stands for the second derivative."""
        found: Statistic = self.options.statistic
        return found

    @property
    def requires(self) -> frozenset[str | Statistic]:  # type: ignore[override]
        """The diagonal that the options name."""
        return frozenset({self.diagonal})

    def saliency(
        self, weights: Mapping[str, Tensor], statistics: Mapping[Any, Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """|½dθ²| per weight."""
        return {k: change.abs() for k, change in self._change(weights, statistics).items()}

    def predicted_delta_loss(
        self,
        weights: Mapping[str, Tensor],
        statistics: Mapping[Any, Mapping[str, Tensor]],
        masks: Mapping[str, Tensor],
    ) -> float:
        """Σ ½dθ² over the weights that go, in nats."""
        return _pruned.total(self._change(weights, statistics), masks)

    def _change(
        self, weights: Mapping[str, Tensor], statistics: Mapping[Any, Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        diagonal = statistics[self.diagonal]
        return {k: 0.5 * diagonal[k] * w.square() for k, w in weights.items()}
