"""What the outputs depend on, example by example."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunekit.statistics.squared_columns import SquaredColumns

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.statistics.problem import ForwardPass, Problem


class Sensitivity(SquaredColumns):
    """``Σ_n (∂(s_nᵀz_n)/∂w)²`` over the loss's normaliser, z_n an example's outputs, s_n standard normal.

    Zero just where the outputs of no example depend on a weight: a random combination hides none.
    """

    name = "sensitivity"

    def start(self, problem: Problem) -> None:
        """Seed the draws."""
        super().start(problem)
        self._generator = problem.generator

    def columns(self, batch: ForwardPass) -> tuple[int, Iterator[Tensor]]:
        """One."""
        import torch

        drawn = torch.randn(batch.outputs.shape, generator=self._generator, dtype=torch.float64, device="cpu")
        return 1, iter([drawn.to(batch.outputs)])
