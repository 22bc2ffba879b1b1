"""Column by column: what goes from a column is made up for by the columns to its right (SparseGPT).

All outputs take the same order, so the inverses of what is left to the right are the same for all, and a single
Cholesky factor ``UᵀU = H⁻¹`` has them: row j of U, divided by ``U_jj``, is how the columns from j on answer to a change
of column j. Reference: Frantar & Alistarh (2023), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunekit.masks import apportion, smallest
from prunekit_plugins._curvature.grams import Gram
from prunekit_plugins._linalg.inversion import triangular_inverse
from prunekit_plugins._selection.pattern import side_by_side

Choice = Callable[[int, int, Tensor], Tensor]
"""Given first and last column (one past) and their scores ``[groups, columns, units]``, what goes."""

_INNER = 16
"""Columns within which every weight is brought up to date at once; more of them are by products of matrices."""


def factor(damped: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse, ``UᵀU = H⁻¹``, for each of some matrices ``[G, k, k]``.

    With the order of rows and columns reversed, H's own factor is the inverse of U: the inverse itself, with its
    rounding, is not needed.
    """
    flipped = damped.flip(1, 2)
    del damped  # of a large layer, each of these counts
    lower = torch.linalg.cholesky(flipped)
    del flipped
    inverse = triangular_inverse(lower)
    del lower
    return inverse.flip(1, 2)


def sweep(layer: Columns, width: int, step: int, choose: Choice) -> tuple[Tensor, Tensor]:
    """Go through the columns from left to right.

    A weight that is pruned already takes part in the mask and nowhere else: what earlier columns would put on it is
    passed on to later ones as an error of its own.

    Args:
        layer: Its weights.
        width: Columns after which those further to the right are brought up to date.
        step: Columns for which the choice is made at once, at the first of them; divides ``width``.
        choose: Says what goes.

    Returns:
        The new values, and what has gone, both ``[groups, columns, units]``.
    """
    values, upper, live = layer.values.clone(), layer.upper, layer.live
    gone = torch.zeros_like(values, dtype=torch.bool)
    errors = torch.empty_like(values[:, :width])
    count = values.shape[1]
    diagonal = upper.diagonal(dim1=1, dim2=2).unsqueeze(2)
    along = (
        upper / diagonal
    ).mT  # how the columns to the right answer to a change of one, which stands in a column
    for start in range(0, count, width):
        stop = min(start + width, count)
        j = start
        while j < stop:
            if (j - start) % step == 0:
                end = min(j + step, stop)
                scores = (values[:, j:end] / diagonal[:, j:end]).square_() / 2
                gone[:, j:end] = choose(j, end, scores * live[:, j:end, None])
            # Up to the next choice, which is made of values that are up to date.
            inner = min(j + _INNER, j + step - (j - start) % step, stop)
            _forward(values, errors[:, j - start : inner - start], along, gone, j, inner)
            done = errors[:, j - start : inner - start]
            values[:, inner:stop].baddbmm_(along[:, inner:stop, j:inner], done, alpha=-1)
            j = inner
        values[:, stop:].baddbmm_(along[:, stop:, start:stop], errors[:, : stop - start], alpha=-1)
    return values, gone


def _forward(values: Tensor, errors: Tensor, along: Tensor, gone: Tensor, start: int, stop: int) -> None:
    """Let some columns go one after another, each made up for by those right of it up to ``stop``."""
    for j in range(start, stop):
        lost = values[:, j : j + 1]
        error = errors[:, j - start : j - start + 1]
        torch.mul(lost, gone[:, j : j + 1], out=error)
        lost.masked_fill_(gone[:, j : j + 1], 0.0)
        if j + 1 < stop:
            values[:, j + 1 : stop].addcmul_(along[:, j + 1 : stop, j : j + 1], error, value=-1)


def given(gone: Tensor) -> Choice:
    """The choice of what is chosen already, ``[groups, columns, units]``."""
    return lambda start, stop, scores: gone[:, start:stop]


class Columns:
    """A layer's weights as the sweep takes them: a column's weights, one for each unit, lie one after another.

    Args:
        gram: The layer's.
        weight: The parameter.
        damping: Multiple of the identity added to H.
        relative: The same in units of H's mean diagonal.
        m: Weights of a pattern's group, which then stand side by side; else the columns keep the parameter's order.

    Attributes:
        values: ``[groups, columns, units]``.
        upper: U ``[groups, columns, columns]``.
        live: ``[groups, columns]``.
        order: ``[columns]``, where each column stands in the parameter.
    """

    def __init__(self, gram: Gram, weight: Tensor, damping: float, relative: float, m: int | None) -> None:
        self._gram = gram
        moments, inputs = gram.moments, gram.rows.inputs
        order = None if m is None else side_by_side(inputs, gram.rows.kernel, m)
        self._sorted = order is None
        self.order = torch.arange(inputs, device=weight.device) if order is None else order.to(weight.device)
        self.values = self.arranged(weight.to(moments.matrix.dtype))
        alpha = damping + relative * moments.mean

        def factored() -> Tensor:
            if self._sorted:
                return factor(moments.damped(alpha))
            return factor(moments.damped(alpha)[:, self.order][:, :, self.order])

        self.upper = moments.once(("factor", alpha, None if self._sorted else m), factored)
        self.live = moments.live[:, self.order]

    def arranged(self, tensor: Tensor) -> Tensor:
        """What has the parameter's shape, as ``[groups, columns, units]``."""
        columns = self._gram.of(tensor).mT
        return columns.contiguous() if self._sorted else columns[:, self.order]

    def undo(self, tensor: Tensor) -> Tensor:
        """Back to the parameter's shape."""
        if not self._sorted:
            tensor = torch.empty_like(tensor).index_copy_(1, self.order, tensor)
        return self._gram.back(tensor.mT)


class Quotas:
    """Choose so many of each run of columns: a share of the layer's, by largest remainder.

    Args:
        pruned: Already, ``[groups, columns, units]``; these go first.
        share: Weights of the layer that are pruned afterwards.
        order: ``[columns]``, by which ties are decided.
        width: Of a run, unless the pattern is to be complete: then it is a group.
        pattern: n and m, where no more than ``m - n`` of a group may go.
        spared: ``[groups, columns, units]``, what stays as long as there is something else.

    Attributes:
        step: Columns of a run.
    """

    def __init__(
        self,
        pruned: Tensor,
        share: int,
        order: Tensor,
        width: int,
        pattern: tuple[int, int] | None,
        spared: Tensor | None = None,
    ) -> None:
        self._pruned, self._order, self._pattern, self.step = pruned, order, pattern, width
        self._spared = spared
        gone = pruned.sum((0, 2))
        most = torch.full_like(gone, pruned.shape[0] * pruned.shape[2])
        if spared is not None and pattern is None:
            others = most - (spared & ~pruned).sum((0, 2))
            most = others if int(others.sum()) >= share else most
        if pattern is not None:
            n, m = pattern
            grouped = pruned.mT.reshape(len(pruned), pruned.shape[2], -1, m).sum(-1, keepdim=True)
            first = torch.arange(m, device=pruned.device)  # counted as if the first of a group went
            most = (first < grouped.clamp(min=m - n)).sum((0, 1)).flatten()
            if int(most.sum()) == share:
                self.step = m
        runs = range(0, len(gone), self.step)
        sizes, lower, upper = (
            [int(counts[start : start + self.step].sum()) for start in runs]
            for counts in (torch.ones_like(gone), gone, most)
        )
        self._counts = dict(zip(runs, apportion(share, sizes, lower, upper), strict=True))

    def __call__(self, start: int, stop: int, scores: Tensor) -> Tensor:
        """The smallest scores; of equal ones the lower flat index goes first."""
        pruned = self._pruned[:, start:stop]
        if self._spared is not None:
            scores = scores.masked_fill(self._spared[:, start:stop], torch.inf)
        scores = scores.masked_fill(pruned, -1.0)  # scores are not negative
        if self._pattern is not None:
            n, m = self._pattern
            grouped = scores.mT.reshape(len(scores), scores.shape[2], -1, m)
            first = grouped.argsort(dim=-1, stable=True)[..., : m - n]
            may_go = torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, first, True).flatten(2).mT
            scores = scores.masked_fill(~(may_go | pruned), torch.inf)
        order = self._order[start:stop].argsort()
        by_place = scores.mT[:, :, order]  # as they lie in the parameter, row after row
        chosen = smallest(by_place.flatten(), self._counts[start]).view(by_place.shape)
        return torch.empty_like(chosen).index_copy_(2, order, chosen).mT
