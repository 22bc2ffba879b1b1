"""The linear model: first-order Taylor expansion of the loss."""

from __future__ import annotations

from prunekit_plugins.criteria._taylor import Taylor


class LinearModel(Taylor):
    """|g·θ| (LM). With λ = 0 and one step this ranks as SNIP does.

    Reference: Laurent et al. (2020), section 3; SNIP: Lee et al. (2019).
    """

    name = "lm"
    gradient = "gradient"
