"""Optimal Brain Surgeon: off-diagonal curvature, and weights that make up for those that go."""

from __future__ import annotations

from prunekit_plugins.criteria._surgeon import Surgeon


class OptimalBrainSurgeon(Surgeon):
    """θ_q² / (2 [H⁻¹]_qq), H a damped curvature matrix over the kept weights; survivors are adjusted.

    The gradient is taken to be zero. Exact where the loss is quadratic and at its minimum: the saliency is
    the loss's increase after the others have made up for the weight that goes. Several weights S at once:
    δθ = −H⁻¹_{:,S} ([H⁻¹]_SS)⁻¹ θ_S. Needs a dense inverse: for a few thousand weights.
    Reference: Hassibi & Stork (1992).
    """

    name = "obs"
    statistic = "inverse_full"
