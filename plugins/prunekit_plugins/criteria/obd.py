"""Optimal Brain Damage: diagonal second-order saliency."""

from __future__ import annotations

from prunekit import Statistic
from prunekit_plugins.criteria._curvature import CurvatureOptions
from prunekit_plugins.criteria._taylor import Taylor


class OptimalBrainDamage(Taylor):
    """|½·d·θ²|: the gradient is taken to be zero, as at the end of training.

    Reference: LeCun, Denker & Solla (1990), OBD procedure, step 4, ``s_k = h_kk u_k² / 2``, with the
    diagonal of the Gauss-Newton matrix for h_kk by default (Laurent et al., 2020, section 3). The absolute
    value matters only for curvatures that can be negative.
    """

    name = "obd"
    Options = CurvatureOptions
    options: CurvatureOptions

    @property
    def curvature(self) -> Statistic:
        """The diagonal that the options name."""
        return self.options.statistic
