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
from prunekit_plugins._curvature.layer_gram import LayerGram

Choice = Callable[[int, int, Tensor], Tensor]
"""Given first and last column (one past) and their scores ``[groups, units, columns]``, what goes."""


def factor(damped: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse, ``UᵀU = H⁻¹``, for each of some matrices ``[G, k, k]``.

    With the order of rows and columns reversed, H's own factor is the inverse of U: the inverse itself, with its
    rounding, is not needed.
    """
    lower = torch.linalg.cholesky(damped.flip(1, 2))
    unit = torch.eye(lower.shape[1], dtype=lower.dtype, device=lower.device)
    return torch.stack([torch.linalg.solve_triangular(one, unit, upper=False) for one in lower]).flip(1, 2)


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
        The new values, and what has gone, both ``[groups, units, columns]``.
    """
    values, upper, live = layer.values.clone(), layer.upper, layer.live
    gone = torch.zeros_like(values, dtype=torch.bool)
    count = values.shape[2]
    diagonal = upper.diagonal(dim1=1, dim2=2)
    for start in range(0, count, width):
        stop = min(start + width, count)
        errors = values.new_zeros(*values.shape[:2], stop - start)
        for j in range(start, stop):
            if (j - start) % step == 0:
                end = min(j + step, stop)
                scores = (values[:, :, j:end] / diagonal[:, None, j:end]).square_() / 2
                gone[:, :, j:end] = choose(j, end, scores * live[:, None, j:end])
            error = torch.where(gone[:, :, j], values[:, :, j], 0.0) / diagonal[:, None, j]
            values[:, :, j:stop] -= error.unsqueeze(2) * upper[:, j, j:stop].unsqueeze(1)
            values[:, :, j].masked_fill_(gone[:, :, j], 0.0)
            errors[:, :, j - start] = error
        values[:, :, stop:] -= torch.bmm(errors, upper[:, start:stop, stop:])
    return values, gone


def given(gone: Tensor) -> Choice:
    """The choice of what is chosen already, ``[groups, units, columns]``."""
    return lambda start, stop, scores: gone[:, :, start:stop]


class Columns:
    """A layer's weights as the sweep takes them.

    Args:
        family: The layer's.
        weight: The parameter.
        damping: Beside the layer's own.
        m: Weights of a pattern's group, which then stand side by side; else the columns keep the parameter's order.

    Attributes:
        values: ``[groups, units, columns]``, float64.
        upper: U ``[groups, columns, columns]``.
        live: ``[groups, columns]``.
        order: ``[columns]``, where each column stands in the parameter.
    """

    def __init__(self, family: LayerGram, weight: Tensor, damping: float, m: int | None) -> None:
        self._rows = family.rows
        self._shape = len(family.gram), family.rows.count // len(family.gram), family.inputs
        order = torch.arange(family.inputs, device=weight.device)
        if m is not None:
            order = order.view(-1, m, family.rows.kernel).transpose(1, 2).flatten()
        self.order = order
        self.values = self.arranged(weight.double())
        self.upper = factor(family.matrix(damping)[:, order][:, :, order])
        self.live = family.live[:, order]

    def arranged(self, tensor: Tensor) -> Tensor:
        """What has the parameter's shape, as ``[groups, units, columns]``."""
        return self._rows.of(tensor).view(self._shape)[:, :, self.order]

    def undo(self, tensor: Tensor) -> Tensor:
        """Back to the parameter's shape."""
        return self._rows.back(torch.empty_like(tensor).index_copy_(2, self.order, tensor))


class Quotas:
    """Choose so many of each run of columns: a share of the layer's, by largest remainder.

    Args:
        pruned: Already, ``[groups, units, columns]``; these go first.
        share: Weights of the layer that are pruned afterwards.
        order: ``[columns]``, by which ties are decided.
        width: Of a run, unless the pattern is to be complete: then it is a group.
        pattern: n and m, where no more than ``m - n`` of a group may go.
        spared: ``[groups, units, columns]``, what stays as long as there is something else.

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
        gone = pruned.sum((0, 1))
        most = torch.full_like(gone, pruned.shape[0] * pruned.shape[1])
        if spared is not None and pattern is None:
            others = most - (spared & ~pruned).sum((0, 1))
            most = others if int(others.sum()) >= share else most
        if pattern is not None:
            n, m = pattern
            grouped = pruned.reshape(*pruned.shape[:2], -1, m).sum(-1, keepdim=True)
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
        pruned = self._pruned[:, :, start:stop]
        if self._spared is not None:
            scores = scores.masked_fill(self._spared[:, :, start:stop], torch.inf)
        scores = scores.masked_fill(pruned, -1.0)  # scores are not negative
        if self._pattern is not None:
            n, m = self._pattern
            grouped = scores.reshape(*scores.shape[:2], -1, m)
            first = grouped.argsort(dim=-1, stable=True)[..., : m - n]
            may_go = torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, first, True).flatten(2)
            scores = scores.masked_fill(~(may_go | pruned), torch.inf)
        order = self._order[start:stop].argsort()
        chosen = smallest(scores[:, :, order].flatten(), self._counts[start]).view_as(scores)
        return torch.empty_like(chosen).index_copy_(2, order, chosen)
