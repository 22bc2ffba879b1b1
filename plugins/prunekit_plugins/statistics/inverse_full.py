"""The inverse of a whole curvature matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunekit import Estimator, UnsupportedError
from prunekit.units import memory_option, readable_bytes
from prunekit_plugins._curvature.cost import cost_notice
from prunekit_plugins._curvature.options import Columns, InverseOptions, derived, hessian_columns

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Statistics, Tensors
    from prunekit.masks import Layer
    from prunekit.statistics import ForwardPass, Problem

_MATRICES = 8  # the curvature, the inverse, and what inverting, eliminating and adjusting need; measured


class InverseFull(Estimator):
    """(C + αI)⁻¹ over all kept weights, C a curvature matrix averaged like the loss; dense, in float64.

    By Cholesky factorisation, which for the sum of outer products α I + Σ g gᵀ gives what the
    Sherman-Morrison recursion gives (Hassibi & Stork, 1992). A matrix that is not positive
    definite is refused, with the damping that would make it so; nothing is replaced silently.
    The result has ``.matrix``, ``.curvature`` and ``.kept`` beside the inverse's diagonal.

    Cost: memory for eight K × K matrices of K kept weights; K² operations for each example and column, and
    K³ for the inverse.
    """

    name = "inverse_full"
    Options = InverseOptions
    options: InverseOptions
    captures = True
    additive = False

    @property
    def second_order(self) -> bool:
        """Only the Hessian's graph is differentiated twice."""
        return self.options.curvature == "hessian"

    def check(self, layers: Sequence[Layer], memory: int) -> str | None:
        """Refuse matrices that do not fit."""
        weights = sum(layer.size for layer in layers)
        self._check(weights, memory)
        return cost_notice(self.name, _MATRICES * 8 * weights**2, weights**3)

    def _check(self, weights: int, memory: int) -> None:
        needed = _MATRICES * 8 * weights**2
        if needed > memory:
            most = int((memory / (_MATRICES * 8)) ** 0.5)
            raise UnsupportedError(
                f"inverse_full: {weights:,} kept weights take {readable_bytes(needed)} ({_MATRICES} dense float64 "
                f"matrices) and about {weights**3 / 3e10:,.0f} s per inverse; the memory budget is "
                f"{readable_bytes(memory)}, enough for {most:,} weights. Raise it "
                f"(memory: {memory_option(needed)}), prune fewer layers (prunable), or take curvature in blocks: "
                "obs_rows or obs_block"
            )

    def derive(self, known: Statistics) -> Tensors | None:
        """From the same curvature with another damping."""
        return derived(self, known)

    def start(self, problem: Problem) -> None:
        """Refuse what does not fit, and make the accumulator."""
        import torch

        self._problem = problem
        self._columns = Columns(problem, self.options)
        self._kept = problem.kept()
        count = len(self._kept)
        self._check(count, problem.memory)
        self._sum = torch.zeros(count, count, dtype=torch.float64, device=self._kept.device)

    def add(self, batch: ForwardPass) -> None:
        """Add the batch's outer products, or its Hessian."""
        if self.second_order:
            for number, column in hessian_columns(batch, self._kept):
                self._sum[number] += column[self._kept]
            return
        from prunekit.statistics import example_rows

        for column in self._columns(batch):
            rows = example_rows(batch, column, self._kept)
            self._sum.addmm_(rows.t(), rows)

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Divide the sum by the normaliser, add the damping, and invert."""
        from prunekit_plugins._curvature.block_families import Dense, FullInverse

        curvature = self._sum.div_(2 * normaliser)
        curvature = curvature + curvature.t()
        del self._sum  # the memory has room for eight matrices
        shapes = {name: p.shape for name, p in self._problem.parameters.items()}
        family, damping = Dense(curvature, self._kept), self.options.damping
        found = FullInverse(self.name, shapes, [family], damping, self._problem.memory)
        found.remark = self._columns.remark
        return found
