"""Squared gradients as curvature."""

from __future__ import annotations

from prunekit import Options, Statistic
from prunekit_plugins._curvature.options import Terms
from prunekit_plugins.criteria._taylor import Taylor


class FisherOptions(Options):
    """Options.

    Attributes:
        terms: ``token``, each loss term has a gradient of its own; ``sequence``, all terms of an example together.
    """

    terms: Terms = "token"


class EmpiricalFisher(Taylor):
    """½·F·θ² with F the diagonal of the empirical Fisher: ``obd`` with that curvature, under its usual name.

    Reference: Theis et al. (2018), Fisher pruning.
    """

    name = "empirical_fisher"
    Options = FisherOptions
    options: FisherOptions

    @property
    def curvature(self) -> Statistic:
        """The diagonal of the empirical Fisher."""
        terms = self.options.terms
        return Statistic("empirical_fisher_diagonal", **({} if terms == "token" else {"terms": terms}))
