"""The linear model: first-order Taylor expansion of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunekit import Criterion
from prunekit_plugins.criteria import _pruned

if TYPE_CHECKING:
    from torch import Tensor


class LinearModel(Criterion):
    """|g·θ| (LM). With λ = 0 and one step this ranks as SNIP does.

    Reference: Laurent et al. (2020), section 3; SNIP: Lee et al. (2019).
    """

    name = "lm"
    requires = frozenset({"gradient"})

    def saliency(
        self, weights: Mapping[str, Tensor], statistics: Mapping[Any, Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """|gθ| per weight."""
        gradient = statistics["gradient"]
        return {k: (gradient[k] * w).abs() for k, w in weights.items()}

    def predicted_delta_loss(
        self,
        weights: Mapping[str, Tensor],
        statistics: Mapping[Any, Mapping[str, Tensor]],
        masks: Mapping[str, Tensor],
    ) -> float:
        """Σ −gθ over the weights that go, in nats; those already gone are zero and add nothing."""
        gradient = statistics["gradient"]
        return _pruned.total({k: -gradient[k] * w for k, w in weights.items()}, masks)
