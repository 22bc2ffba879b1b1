"""Equal numbers of weights at each step."""

from __future__ import annotations

from prunekit_plugins.schedulers._targets import Curve


class Linear(Curve):
    """κ_i = κ·i/π."""

    name = "linear"

    def level(self, target: float, step: int, steps: int) -> float:
        """By the equation."""
        return target * step / steps
