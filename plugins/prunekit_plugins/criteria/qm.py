"""The quadratic model: gradient and curvature diagonal."""

from __future__ import annotations

from prunekit import Statistic
from prunekit_plugins.criteria._curvature import CurvatureOptions
from prunekit_plugins.criteria._taylor import Taylor


class QuadraticModel(Taylor):
    """|−g·θ + ½·d·θ²| (QM), the absolute value around the sum.

    Exact for the removal of any single weight where the loss is quadratic and d its Hessian diagonal.
    Reference: Laurent et al. (2020), section 3.
    """

    name = "qm"
    Options = CurvatureOptions
    options: CurvatureOptions
    gradient = "gradient"

    @property
    def curvature(self) -> Statistic:
        """The diagonal that the options name."""
        return self.options.statistic
