"""Optimal Brain Surgeon with the first-order term."""

from __future__ import annotations

from pydantic import Field

from prunekit_plugins.criteria._surgeon import Surgeon, SurgeonOptions


class GradientSurgeonOptions(SurgeonOptions):
    """Options of ``obs``, with more damping by default.

    Attributes:
        damping: Multiple of the identity added before inverting; λ is added to it. It limits the Newton step, which
            otherwise follows the noise of a sample wherever the curvature is small.
    """

    damping: float = Field(default=0.1, ge=0)


class GradientSurgeon(Surgeon):
    """(θ_q − (H⁻¹g)_q)² / (2 [H⁻¹]_qq): OBS about the model's minimum, which is a Newton step away.

    The survivors take that step too, even where nothing is pruned:
    δθ = −H⁻¹g − H⁻¹_{:,S} ([H⁻¹]_SS)⁻¹ (θ − H⁻¹g)_S. Damping limits it.
    With a diagonal H the saliency is (−gθ + ½dθ²) + g²/(2d): the quadratic model's, without the absolute
    value, up to a constant. Reference: Singh & Alistarh (2020), WoodTaylor.
    """

    name = "obs_gradient"
    Options = GradientSurgeonOptions
    statistic = "inverse_full"

    @property
    def first_order(self) -> bool:
        """Always: it is what this criterion adds."""
        return True
