"""The quadratic model: gradient and curvature diagonal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunekit import Criterion, Statistic
from prunekit_plugins.criteria import _pruned
from prunekit_plugins.criteria._curvature import CurvatureOptions

if TYPE_CHECKING:
    from torch import Tensor


class QuadraticModel(Criterion):
    """|−g·θ + ½·d·θ²| (QM), the absolute value around the sum.

    Exact for the removal of any single weight where the loss is quadratic and d its Hessian diagonal.
    Reference: Laurent et al. (2020), section 3.
    """

    name = "qm"
    Options = CurvatureOptions

    @property
    def requires(self) -> frozenset[str | Statistic]:  # type: ignore[override]
        """The gradient and the diagonal that the options name."""
        return frozenset({"gradient", self.options.statistic})

    def saliency(
        self, weights: Mapping[str, Tensor], statistics: Mapping[Any, Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """|−gθ + ½dθ²| per weight."""
        return {k: change.abs() for k, change in self._change(weights, statistics).items()}

    def predicted_delta_loss(
        self,
        weights: Mapping[str, Tensor],
        statistics: Mapping[Any, Mapping[str, Tensor]],
        masks: Mapping[str, Tensor],
    ) -> float:
        """Σ −gθ + ½dθ² over the weights that go, in nats."""
        return _pruned.total(self._change(weights, statistics), masks)

    def _change(
        self, weights: Mapping[str, Tensor], statistics: Mapping[Any, Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        gradient, diagonal = statistics["gradient"], statistics[self.options.statistic]
        return {k: (0.5 * diagonal[k] * w - gradient[k]) * w for k, w in weights.items()}
