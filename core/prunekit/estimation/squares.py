"""Diagonals of the form ``Σ_n Σ_c (J_nᵀ s_nc)²``: what the GGN and Fisher diagonals have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunekit.components import Estimator

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.estimation.problem import ForwardPass, Problem


class SquaredColumns(Estimator):
    """Sum over examples and columns of squared vector-Jacobian products, over the loss's normaliser.

    A subclass says which columns are sent back. Cost per batch: one backward pass to the activations per
    column, and the products of :class:`~prunekit.estimation.contraction.SquareSum`.
    """

    captures = True

    @abstractmethod
    def columns(self, batch: ForwardPass) -> tuple[int, Iterator[Tensor]]:
        """Number of columns and the columns, each in the shape of the outputs."""

    def start(self, problem: Problem) -> None:
        """Make the accumulators."""
        self._problem = problem
        self._sums = problem.zeros()

    def add(self, batch: ForwardPass) -> None:
        """Send every column back and add its squares."""
        from prunekit.estimation.contraction import SquareSum
        from prunekit.estimation.fallback import squared_columns

        count, columns = self.columns(batch)
        squares = {name: SquareSum(uses, count, self._sums[name].dtype) for name, uses in batch.uses.items()}
        kept = []
        for column in columns:
            for name, returned in batch.backward(column).items():
                squares[name].add(returned)
            if batch.others:
                kept.append(column)
        for name, square in squares.items():
            self._sums[name] += square.total(self._sums[name].shape)
        if kept:
            for name, value in squared_columns(batch, kept).items():
                self._sums[name] += value

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Divide by the normaliser."""
        return {name: total.div_(normaliser) for name, total in self._sums.items()}
