"""Squared gradients as curvature."""

from __future__ import annotations

from prunekit import Statistic
from prunekit_plugins.criteria._taylor import Taylor


class EmpiricalFisher(Taylor):
    """½·F·θ² with F the diagonal of the empirical Fisher: ``obd`` with that curvature, under its usual name.

    Reference: Theis et al. (2018), Fisher pruning.
    """

    name = "empirical_fisher"
    curvature = Statistic("empirical_fisher_diagonal")
