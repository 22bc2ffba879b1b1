"""The diagonal of the generalised Gauss-Newton matrix, from labels that the model itself draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from prunekit import Options
from prunekit.statistics import SquaredColumns

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.statistics import ForwardPass, Problem


class DrawOptions(Options):
    """Options.

    Attributes:
        draws: Labels drawn per loss term.
    """

    draws: int = Field(default=1, ge=1, le=1_000_000)


class GGNMonteCarloDiagonal(SquaredColumns):
    """An unbiased estimate of ``ggn_diagonal`` by ``draws`` labels per term; variance falls as 1/draws.

    Labels come from the model's predictive distribution: softmax, Bernoulli, or a normal of variance ½
    for ``mse``. Reference: Martens (2020); Dangel, Kunstner & Hennig (2020), DiagGGN-MC.

    Cost per batch: one backward pass to the activations per draw. Every draw has a generator of its own,
    seeded by the step's, and takes the examples in their order: how batches are cut does not matter.
    """

    name = "ggn_mc_diagonal"
    Options = DrawOptions

    def start(self, problem: Problem) -> None:
        """Give every draw a generator of its own, seeded by the step's."""
        import torch

        super().start(problem)
        seeds = torch.randint(
            2**62, (self.options.draws,), generator=problem.generator, device="cpu"
        ).tolist()
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def columns(self, batch: ForwardPass) -> tuple[int, Iterator[Tensor]]:
        """One drawn gradient in the outputs per draw."""
        loss, outputs, draws = batch.problem.loss, batch.outputs.detach(), self.options.draws
        drawn = (loss.draw(outputs, batch.targets, g) * draws**-0.5 for g in self._generators)
        return draws, drawn
