"""Many weights first, few at the end."""

from __future__ import annotations

from prunekit import Scheduler
from prunekit_plugins.schedulers._levels import Steps


class Cubic(Scheduler):
    """κ_i = κ·(1 − (1 − i/π)³). Reference: Zhu & Gupta (2017), equation 1."""

    name = "cubic"
    Options = Steps

    def levels(self) -> list[float]:
        """The levels κ₁ … κ_π; the last is the target itself, untouched by rounding."""
        target, steps = self.options.sparsity, self.options.steps
        return [target * (1 - (1 - i / steps) ** 3) for i in range(1, steps)] + [target]
