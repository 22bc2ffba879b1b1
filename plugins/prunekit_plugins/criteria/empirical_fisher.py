"""Squared gradients as curvature."""

from __future__ import annotations

from prunekit import Options, Statistic
from prunekit_plugins.criteria.obd import OptimalBrainDamage


class EmpiricalFisher(OptimalBrainDamage):
    """½·F·θ² with F the diagonal of the empirical Fisher: ``obd`` with that curvature, under its usual name.

    Reference: Theis et al. (2018), Fisher pruning.
    """

    name = "empirical_fisher"
    Options = Options  # type: ignore[assignment]

    @property
    def diagonal(self) -> Statistic:
        """The empirical Fisher's."""
        return Statistic("empirical_fisher_diagonal")
