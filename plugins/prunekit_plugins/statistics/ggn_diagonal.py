"""The exact diagonal of the generalised Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from prunekit import Detailed, Options
from prunekit.statistics import SquaredColumns
from prunekit_plugins._curvature.options import drawn_remark, generators

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from prunekit.statistics import ForwardPass, Problem


class GGNOptions(Options):
    """Options.

    Attributes:
        most: Columns per example up to which it is exact; beyond, labels are drawn as for ``ggn_mc_diagonal``. By default
            it is always exact.
        draws: Labels per loss term, where they are drawn.
    """

    most: int | None = Field(default=None, ge=1)
    draws: int = Field(default=1, ge=1, le=1_000_000)


class GGNDiagonal(SquaredColumns):
    """diag(JᵀHJ), J the Jacobian of the outputs and H the loss's Hessian in them, averaged like the loss.

    For softmax cross-entropy: mean over examples of Σ_c p_c (∂ log p_c / ∂θ)², exact over the classes;
    labels do not enter. Equal to the Hessian's diagonal where the outputs are linear in the weights.
    Reference: Schraudolph (2002), section 3; Laurent et al. (2020), section 3.

    Cost per batch: one backward pass to the activations per column of the factor (classes − 1 for
    cross-entropy), and one product per layer where it is used at one position per example.
    """

    name = "ggn_diagonal"
    Options = GGNOptions
    options: GGNOptions

    def start(self, problem: Problem) -> None:
        """Nothing is known yet of how many columns there are."""
        super().start(problem)
        self._labels: list[Generator] = []
        self._rank = 0

    def columns(self, batch: ForwardPass) -> tuple[int, Iterator[Tensor]]:
        """The columns of the square root of H, or drawn ones in their place."""
        loss, outputs, most = batch.problem.loss, batch.outputs.detach(), self.options.most
        rank = loss.ggn_rank(outputs, batch.targets)
        if not self._rank and most is not None and rank > most:  # the first examples decide for all
            self._labels = generators(batch.problem, self.options.draws)
        self._rank = max(self._rank, rank)
        if not self._labels:
            return rank, loss.ggn_factor(outputs, batch.targets)
        share = len(self._labels) ** -0.5
        return len(self._labels), (loss.draw(outputs, batch.targets, g) * share for g in self._labels)

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Divide by the normaliser; where labels were drawn, say so."""
        found = super().finish(normaliser)
        if not self._labels:
            return found
        drawn = Detailed(found)
        draws = len(self._labels)
        drawn.remark = drawn_remark(self._rank, draws, self.options.most or 0)
        return drawn
