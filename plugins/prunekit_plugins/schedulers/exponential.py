"""A constant fraction of what is left at each step."""

from __future__ import annotations

from prunekit import Scheduler
from prunekit_plugins.schedulers._levels import Steps


class Exponential(Scheduler):
    """κ_i = 1 − (1 − κ)^{i/π}, as in the paper's code (the formula printed in its Algorithm 1 does not end at κ)."""

    name = "exponential"
    Options = Steps

    def levels(self) -> list[float]:
        """The levels κ₁ … κ_π; the last is the target itself, untouched by rounding."""
        target, steps = self.options.sparsity, self.options.steps
        return [1 - (1 - target) ** (i / steps) for i in range(1, steps)] + [target]
