"""A constant fraction of what is left at each step."""

from __future__ import annotations

from prunekit_plugins.schedulers._targets import Curve


class Exponential(Curve):
    """κ_i = 1 − (1 − κ)^{i/π}, as in the paper's code (the formula printed in its Algorithm 1 does not end at κ)."""

    name = "exponential"

    def level(self, target: float, step: int, steps: int) -> float:
        """The sparsity 1 − (1 − κ)^{i/π} after step i of π, for the target κ."""
        return float(1 - (1 - target) ** (step / steps))
