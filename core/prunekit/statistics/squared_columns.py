"""Diagonals of the form ``Σ_n Σ_c (J_nᵀ s_nc)²``: what the GGN and Fisher diagonals have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunekit.statistics.base import Estimator

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.statistics.problem import ForwardPass, Problem


class SquaredColumns(Estimator):
    """Sum over examples and columns of squared vector-Jacobian products, over the loss's normaliser.

    A subclass says which columns are sent back. Cost per batch: one backward pass to the activations per
    column, and the products of :class:`~prunekit.statistics.square_sums.SquareSum`.
    """

    captures = True

    @abstractmethod
    def columns(self, batch: ForwardPass) -> tuple[int, Iterator[Tensor]]:
        """Number of columns and the columns, each in the shape of the outputs."""

    def start(self, problem: Problem) -> None:
        """Make the accumulators."""
        from prunekit.statistics.square_sums import Scratch

        self._scratch = Scratch(problem.memory, next(iter(problem.parameters.values())).device)
        self._problem = problem
        self._sums: dict[str, Tensor] = {}

    def add(self, batch: ForwardPass) -> None:
        """Send every column back and add its squares."""
        from prunekit.statistics.per_example import columns_at_once
        from prunekit.statistics.square_sums import SquareSum

        problem = self._problem
        count, columns = self.columns(batch)
        squares = {
            name: SquareSum(uses, count, problem.dtype(problem.parameters[name]), self._scratch)
            for name, uses in batch.uses.items()
        }
        kept: list[Tensor] = []
        together = columns_at_once(batch, count) if batch.others else 0
        for column in columns:
            for name, returned in batch.backward(column).items():
                squares[name].add(returned)
            if batch.others:
                kept.append(column)
                if len(kept) == together:
                    self._add_others(batch, kept)
                    kept = []
        for name, square in squares.items():
            self._add(name, square.total(problem.parameters[name].shape))
        if kept:
            self._add_others(batch, kept)

    def _add_others(self, batch: ForwardPass, columns: list[Tensor]) -> None:
        from prunekit.statistics.per_example import squared_columns

        for name, value in squared_columns(batch, columns).items():
            self._add(name, value)

    def _add(self, name: str, value: Tensor | None) -> None:
        if value is not None:
            self._sums[name] = self._sums[name].add_(value) if name in self._sums else value

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Divide by the normaliser; zeros for a parameter that the outputs do not depend on."""
        import torch

        del self._scratch
        dtypes = {name: self._problem.dtype(p) for name, p in self._problem.parameters.items()}
        return {
            name: self._sums[name].div_(normaliser)
            if name in self._sums
            else torch.zeros_like(p, dtype=dtypes[name], requires_grad=False)
            for name, p in self._problem.parameters.items()
        }
