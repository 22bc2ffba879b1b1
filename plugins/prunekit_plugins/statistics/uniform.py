"""Random numbers in place of a statistic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit import Estimator

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.statistics import Problem


class Uniform(Estimator):
    """U(0, 1) per weight, from the step's generator; the same numbers on every device."""

    name = "uniform"
    needs_data = False

    def start(self, problem: Problem) -> None:
        """Keep the problem, which has the generator and the parameters to draw for."""
        self._problem = problem

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Draw, in parameter order."""
        import torch

        generator = self._problem.generator
        return {
            name: torch.rand(p.shape, generator=generator, dtype=self._problem.dtype(p), device="cpu").to(
                p.device
            )
            for name, p in self._problem.parameters.items()
        }
