"""Equal numbers of weights at each step."""

from __future__ import annotations

from prunekit import Scheduler
from prunekit_plugins.schedulers._levels import Steps


class Linear(Scheduler):
    """κ_i = κ·i/π."""

    name = "linear"
    Options = Steps

    def levels(self) -> list[float]:
        """The levels κ₁ … κ_π; the last is the target itself, untouched by rounding."""
        target, steps = self.options.sparsity, self.options.steps
        return [target * i / steps for i in range(1, steps)] + [target]
