"""Swapping a kept weight of a row for a pruned one, where that lowers the error at the layer's outputs (SparseSwaps).

A row w of which some weights go has the error ``½ dᵀGd``, G the second moments of the inputs and d what goes, since the
weights that stay are as they were. With the correlations ``c = Gd``, sending p away and taking q back changes it by

    ``w_p c_p + ½ w_p² G_pp  −  w_q c_q + ½ w_q² G_qq  −  w_p w_q G_pq``,

what each does by itself, and their cross term. Of all pairs of a row the best is swapped, and the correlations follow by
two rows of G, until no pair lowers the error. Rows do not depend on each other, so some of them take their swaps together.
Reference: Zimmer, Roux, Wagner, Hendrych & Pokutta (2025), arXiv 2512.10922.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit_plugins._curvature.grams import Gram
from prunekit_plugins._selection.pattern import side_by_side

PIECE = 128 << 20
"""Bytes that the cross terms of some rows may take, with as much to work in; those of a single row may take more."""

_ROUNDING = (
    16  # units in the last place of what the pruned weights cost by themselves: a smaller gain is none
)


def swapped(
    gram: Gram,
    weight: Tensor,
    before: Tensor,
    kept: Tensor,
    limit: int,
    lam: float = 0.0,
    spared: Tensor | None = None,
    m: int | None = None,
    memory: int = PIECE,
) -> Tensor:
    """A mask with the same number of weights in each row, or group of a row, and no larger an error.

    Args:
        gram: The layer's.
        weight: In the parameter's shape, like all that follow.
        before: What was kept before the step, bool; nothing else comes back.
        kept: The mask to begin with.
        limit: Swaps of a row at most.
        lam: λ: ``½λ‖d‖²`` is added to the error.
        spared: What does not go.
        m: Weights of a pattern's group, within which swaps stay.
        memory: See :data:`PIECE`.
    """
    matrices = gram.moments.matrix
    weights, after = gram.of(weight).to(matrices), gram.of(kept).clone()
    out = after if spared is None else after & ~gram.of(spared)
    back = gram.of(before) & ~after
    count = gram.rows.inputs
    order = None if m is None else side_by_side(count, gram.rows.kernel, m)
    order = torch.arange(count, device="cpu") if order is None else order
    places = order.to(weight.device).view(-1, m or count)
    most = [int(which[..., places].sum(-1).max()) if which.numel() else 0 for which in (out, back)]
    row = 2 * len(places) * most[0] * most[1] * matrices.element_size()
    step = memory // row if row else 0
    for group, matrix in enumerate(matrices if row else ()):
        for start in range(0, after.shape[1], max(1, step)):
            some = slice(start, start + max(1, step))
            pairs = _Pairs(
                matrix,
                weights[group, some],
                _Slots.of(out[group, some], places, most[0]),
                _Slots.of(back[group, some], places, most[1]),
                lam,
                after[group, some],
            )
            pairs.swap(limit)
    return gram.back(after)


@dataclass(frozen=True)
class _Slots:
    """The weights of some rows that may be swapped, as many places for each row and group.

    Attributes:
        index: ``[rows, groups, slots]``, where in its row each weight stands.
        filled: Whether there is one.
    """

    index: Tensor
    filled: Tensor

    @classmethod
    def of(cls, which: Tensor, places: Tensor, count: int) -> _Slots:
        """Those of a bool tensor ``[rows, inputs]``, whose inputs are in groups ``[groups, m]``."""
        grouped = which[:, places]
        first = grouped.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices[..., :count]
        index = places.expand(len(which), -1, -1).gather(-1, first)
        return cls(index, grouped.gather(-1, first))

    def among(self, rows: Tensor) -> _Slots:
        """Those of some rows."""
        return _Slots(self.index[rows], self.filled[rows])

    def of_values(self, values: Tensor) -> Tensor:
        """What each has of some values ``[rows, inputs]``."""
        return values.gather(1, self.index.flatten(1)).view(self.index.shape)


class _Pairs:
    """All pairs of some rows, of what may go and what may come back.

    Args:
        matrix: G.
        weights: ``[rows, inputs]``.
        out: What may go.
        back: What may come back.
        lam: λ.
        kept: ``[rows, inputs]``, brought up to date with every swap.
    """

    def __init__(
        self, matrix: Tensor, weights: Tensor, out: _Slots, back: _Slots, lam: float, kept: Tensor
    ) -> None:
        self._matrix, self._weights, self._out, self._back, self._kept = matrix, weights, out, back, kept
        self._rows = torch.arange(len(weights), device=weights.device)  # in ``kept``
        self._half = matrix.diagonal() * weights.square() / 2
        self._penalty = weights.square() * (lam / 2)
        lost = weights * ~kept
        self._correlation = lost @ matrix
        costs = ((self._half + self._penalty) * ~kept).sum(1)
        self._least = _ROUNDING * torch.finfo(matrix.dtype).eps * costs
        self._crossed = out.of_values(weights).unsqueeze(3) * back.of_values(weights).unsqueeze(2)
        self._crossed *= matrix[out.index.unsqueeze(3), back.index.unsqueeze(2)]

    def swap(self, limit: int) -> None:
        """Swap the best pair of each row, until no pair lowers the error or so many have been swapped."""
        work = torch.empty_like(self._crossed)
        for _ in range(limit):
            pull = self._weights * self._correlation
            goes = _or_never(self._out, self._half + self._penalty + pull)
            returns = _or_never(self._back, self._half - self._penalty - pull)
            best = torch.sub(returns.unsqueeze(2), self._crossed, out=work).amin(3).add_(goes)
            change, place = best.flatten(1).min(1)
            rows = (change < -self._least).nonzero().squeeze(1)
            if 2 * len(rows) <= len(change):  # the others have come to their end
                place, returns, rows = place[rows], returns[rows], self._only(rows)
                work = work[: len(rows)]
            if not len(rows):
                return
            self._exchange(rows, place[rows], returns)

    def _exchange(self, rows: Tensor, place: Tensor, returns: Tensor) -> None:
        """Swap what stands at a place of each of some rows for what is best with it."""
        out, back, weights, matrix = self._out.index, self._back.index, self._weights, self._matrix
        group, slot = place // out.shape[2], place % out.shape[2]
        other = (returns[rows, group] - self._crossed[rows, group, slot]).argmin(1)
        p, q = out[rows, group, slot], back[rows, group, other]
        lost, won = weights[rows, p].unsqueeze(1), weights[rows, q].unsqueeze(1)
        self._correlation[rows] += lost * matrix[p] - won * matrix[q]
        self._kept[self._rows[rows], p] = False
        self._kept[self._rows[rows], q] = True
        out[rows, group, slot], back[rows, group, other] = q, p
        beside, across = back[rows, group], out[rows, group]
        row = rows.unsqueeze(1)
        self._crossed[rows, group, slot] = won * weights[row, beside] * matrix[q.unsqueeze(1), beside]
        self._crossed[rows, group, :, other] = lost * weights[row, across] * matrix[p.unsqueeze(1), across]

    def _only(self, rows: Tensor) -> Tensor:
        """Go on with some of the rows; their new numbers."""
        self._out, self._back = self._out.among(rows), self._back.among(rows)
        self._rows, self._weights, self._correlation = (
            t[rows] for t in (self._rows, self._weights, self._correlation)
        )
        self._half, self._penalty, self._least = (t[rows] for t in (self._half, self._penalty, self._least))
        self._crossed = self._crossed[rows]
        return torch.arange(len(rows), device=rows.device)


def _or_never(slots: _Slots, values: Tensor) -> Tensor:
    """What each slot has of some values, ∞ where it is empty."""
    return slots.of_values(values).masked_fill_(~slots.filled, torch.inf)
