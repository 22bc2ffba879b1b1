"""Equal numbers of weights at each step."""

from __future__ import annotations

from prunekit_plugins.schedulers._targets import Curve


class Linear(Curve):
    """κ_i = κ·i/π: the sparsity rises by the same amount at each step."""

    name = "linear"

    def level(self, target: float, step: int, steps: int) -> float:
        """The sparsity κ·i/π after step i of π, for the target κ."""
        return target * step / steps
