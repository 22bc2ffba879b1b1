"""Many weights first, few at the end."""

from __future__ import annotations

from prunekit_plugins.schedulers._targets import Curve


class Cubic(Curve):
    """κ_i = κ·(1 − (1 − i/π)³). Reference: Zhu & Gupta (2017), equation 1."""

    name = "cubic"

    def level(self, target: float, step: int, steps: int) -> float:
        """The sparsity κ·(1 − (1 − i/π)³) after step i of π, for the target κ."""
        return target * (1 - (1 - step / steps) ** 3)
