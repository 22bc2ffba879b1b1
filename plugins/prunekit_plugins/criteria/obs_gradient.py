"""Optimal Brain Surgeon with the first-order term."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunekit import Statistic
from prunekit_plugins.criteria._surgery import Surgeon, flat

if TYPE_CHECKING:
    from torch import Tensor


class GradientSurgeon(Surgeon):
    """(θ_q − (H⁻¹g)_q)² / (2 [H⁻¹]_qq): OBS about the model's minimum, which is a Newton step away.

    The survivors take that step too: δθ = −H⁻¹g − H⁻¹_{:,S} ([H⁻¹]_SS)⁻¹ (θ − H⁻¹g)_S. Damping limits it.
    With a diagonal H the saliency is (−gθ + ½dθ²) + g²/(2d): the quadratic model's, without the absolute
    value, up to a constant. Reference: Singh & Alistarh (2020), WoodTaylor.
    """

    name = "obs_gradient"

    @property
    def requires(self) -> frozenset[str | Statistic]:  # type: ignore[override]
        """The gradient and the inverse."""
        return frozenset({"gradient", self.inverse})

    def minimum(
        self, weights: Mapping[str, Tensor], statistics: Mapping[Any, Mapping[str, Tensor]]
    ) -> Tensor:
        """The model's minimum over the kept weights, ``θ − H⁻¹g``."""
        found: Any = statistics[self.inverse]
        step: Tensor = found.matrix @ flat(statistics["gradient"])[found.kept]
        return super().minimum(weights, statistics) - step

    def slope(self, statistics: Mapping[Any, Mapping[str, Tensor]]) -> Tensor:
        """The gradient."""
        return flat(statistics["gradient"])
