"""The exact diagonal of the Hessian."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from prunekit import Estimator, Options

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.statistics import ForwardPass, Problem


class HessianOptions(Options):
    """Options.

    Attributes:
        limit: Hessian-vector products per batch slice beyond which the statistic is refused.
    """

    limit: int = Field(default=20_000, ge=1)


class HessianDiagonal(Estimator):
    """∂²L/∂θ_k², L the mean loss: exact, where that is feasible. It may be negative.

    For a layer that is used once, one Hessian-vector product per output of the layer serves all its
    weights, because weights that share an output differ only by their inputs. Other parameters cost one
    product per weight. Where the outputs are piecewise linear in every single weight (ReLU networks without
    shared layers) it equals ``ggn_diagonal``, which costs far less; ``hutchinson_diagonal`` estimates it.
    """

    name = "hessian_diagonal"
    Options = HessianOptions
    captures = True
    second_order = True

    def start(self, problem: Problem) -> None:
        """Begin with zeros, to which every batch adds its second derivatives."""
        self._sums = problem.zeros()

    def add(self, batch: ForwardPass) -> None:
        """Add the batch's second derivatives."""
        from prunekit.statistics import add_hessian_diagonal

        add_hessian_diagonal(batch, self._sums, self.options.limit)

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Divide by the normaliser."""
        return {name: total.div_(normaliser) for name, total in self._sums.items()}
