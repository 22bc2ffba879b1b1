"""Greedy elimination where all blocks begin with the same inverse: a pivoted Cholesky factor of it for each of them.

Removing weights ``q_1 … q_k`` from a block leaves ``H⁻¹ − Σ_t l_t l_tᵀ``, where the l are columns of the Cholesky factor of
H⁻¹ with these pivots. They are all that a block has of its own. A column costs 2·n·k operations, where keeping the inverse
up to date would cost 2·n², and several are formed at a time, as a product of matrices. Which weights go next is not known
before, so it is tried among the cheapest few, for which only their own part of the inverse is needed; then every other
weight is looked at, whether it would have been the cheapest on the way, and what was tried from there on is dropped. The
decisions are those of :func:`~prunekit_plugins._selection.elimination.eliminate`.
Reference: Frantar & Alistarh (2022), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunekit.masks import smallest_of_rows
from prunekit_plugins._selection.elimination import Caps, Eliminating, Removed, Traces

_TRIED = 32  # removals that are tried at once
_NEAR = 96  # weights among which they are tried, or a sixteenth of all: nearly nine removals in ten are then right
_ASKED = 4  # trials after which it is asked whether there is enough


def eliminate_alike(
    inverse: Tensor,
    values: Tensor,
    enough: Callable[[Tensor], float],
    caps: Caps | None = None,
    penalty: Tensor | None = None,
) -> Traces:
    """Remove weights from every block until all that is left costs more than is needed.

    Args:
        inverse: H⁻¹ ``[n, n]``, of every block.
        values: The model's minimum ``[R, n]``.
        enough: See :func:`~prunekit_plugins._selection.elimination.eliminate`.
        caps: Limits to what may go; changed in place.
        penalty: Added to the cost of each weight ``[R, n]``.
    """
    blocks = _Blocks(inverse, values, caps, penalty)
    limit = enough(values.new_empty(len(values), 0))
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    while len(blocks.rows):
        fresh = [blocks.trial(limit) for _ in range(_ASKED)]
        found += [(blocks.rows, *some) for some in fresh]
        limit = enough(torch.cat([levels for _, levels in fresh], 1))
        blocks.keep((blocks.level <= limit) & blocks.open.any(1))
    orders = torch.full((len(values), _TRIED * len(found)), -1, dtype=torch.long, device=values.device)
    levels = values.new_full(orders.shape, torch.inf)
    for number, (rows, order, level) in enumerate(found):
        now = slice(_TRIED * number, _TRIED * number + order.shape[1])
        orders[rows, now], levels[rows, now] = order, level
    return Traces(orders, levels)


class _Blocks:
    """The blocks that still lose weights, with their factors, which are rid of what may not go when they need more room.

    Attributes:
        rows: Which they are ``[B]``.
        level: The highest cost so far ``[B]``.
        open: Which of the weights at hand may go ``[B, w]``.
    """

    def __init__(self, inverse: Tensor, values: Tensor, caps: Caps | None, penalty: Tensor | None) -> None:
        count, n = values.shape
        self._inverse = inverse.contiguous()
        self.rows = torch.arange(count, device=values.device)
        self.level = values.new_zeros(count)
        self.open = torch.ones_like(values, dtype=torch.bool)
        if penalty is not None:
            self.open &= penalty < torch.inf
        if caps is not None:
            self.open &= caps.left.gather(1, caps.group) > 0
        self._places = torch.arange(n, device=values.device).expand(count, n)  # of the weights at hand
        self._values = values.clone()
        self._diagonal = inverse.diagonal().expand(count, n).clone()
        self._caps, self._penalty = caps, penalty
        self._factor = values.new_empty(count, 4 * _TRIED, n)
        self._used = 0

    def trial(self, limit: float) -> tuple[Tensor, Tensor]:
        """Remove a few weights from each block: at least one, unless it costs more than the limit.

        Returns:
            What went, and at which level, ``[B, tried]``; −1 and infinite where nothing did.
        """
        if self._used + _TRIED > self._factor.shape[1]:
            self._grow()
        cost = self._values.square().div_(2 * self._diagonal)
        if self._penalty is not None:
            cost += self._penalty
        near = _cheapest(cost.masked_fill_(~self.open, torch.inf), max(_NEAR, len(self._inverse) // 16))
        removed, level = self._tried(near, limit)
        chosen = near.gather(1, removed.orders.clamp(min=0))
        going = removed.orders >= 0
        columns = self._columns(chosen, going, removed)
        good = self._cheapest_indeed(near, chosen, going, columns, removed)
        accepted = going & good
        self._take(columns.mul_(accepted.unsqueeze(2)), removed.shares * accepted)
        self.open.scatter_reduce_(1, chosen, ~accepted, "amin")
        if self._caps is not None:
            group = self._caps.group.gather(1, chosen)
            self._caps.left.scatter_add_(1, group, -accepted.to(self._caps.left.dtype))
            self.open &= self._caps.left.gather(1, self._caps.group) > 0
        levels = removed.levels.masked_fill(~accepted, torch.inf)
        reached = removed.levels.masked_fill(~accepted, 0.0).amax(1)
        self.level = torch.maximum(self.level, torch.where(good.all(1), level, reached))
        return torch.where(accepted, self._places.gather(1, chosen), -1), levels

    def keep(self, which: Tensor) -> None:
        """Go on with some of the blocks."""
        if bool(which.all()):
            return
        self.rows, self.level, self.open = self.rows[which], self.level[which], self.open[which]
        self._places, self._values = self._places[which], self._values[which]
        self._diagonal = self._diagonal[which]
        self._factor = self._factor[which]
        self._penalty = None if self._penalty is None else self._penalty[which]
        if self._caps is not None:
            self._caps = Caps(self._caps.group[which], self._caps.left[which])

    def _tried(self, near: Tensor, limit: float) -> tuple[Removed, Tensor]:
        """Eliminate among the weights ``near [B, k]``; what went, in their numbers, and the levels reached."""
        places = self._places.gather(1, near)
        pairs = places.unsqueeze(2) * len(self._inverse) + places.unsqueeze(1)
        own = self._inverse.view(-1).index_select(0, pairs.view(-1)).view(pairs.shape)
        factor = _at(self._factor[:, : self._used], near)
        own = torch.baddbmm(own, factor.mT, factor, alpha=-1)
        own.diagonal(dim1=1, dim2=2).copy_(self._diagonal.gather(1, near))
        caps = self._caps and Caps(self._caps.group.gather(1, near), self._caps.left.clone())
        penalty = None if self._penalty is None else self._penalty.gather(1, near)
        values, open_ = self._values.gather(1, near), self.open.gather(1, near)
        work = Eliminating(self.rows, own, values, open_, self.level, caps, penalty)
        return work.remove(min(_TRIED, near.shape[1]), limit), work.level

    def _columns(self, chosen: Tensor, going: Tensor, removed: Removed) -> Tensor:
        """The factor's next columns ``[B, steps, w]``; zero where nothing goes."""
        factor = self._factor[:, : self._used]
        rows = self._inverse[self._places.gather(1, chosen)]
        if rows.shape[2] != factor.shape[2]:
            rows = _at(rows, self._places)
        rows.baddbmm_(_at(factor, chosen).mT, factor, alpha=-1)
        # Their own part is known: column t is what remains of row q_t after those before it.
        pivots = removed.columns.gather(
            2, removed.orders.clamp(min=0).unsqueeze(1).expand(-1, rows.shape[1], -1)
        )
        pivots = pivots.mul_(going.unsqueeze(1)).mT.tril()
        pivots.diagonal(dim1=1, dim2=2).masked_fill_(~going, 1.0)
        columns: Tensor = torch.linalg.solve_triangular(pivots, rows.mul_(going.unsqueeze(2)), upper=False)
        return columns

    def _cheapest_indeed(
        self, near: Tensor, chosen: Tensor, going: Tensor, columns: Tensor, removed: Removed
    ) -> Tensor:
        """Up to which removal no weight that is not near would have been cheaper, ``[B, steps]``."""
        steps = columns.shape[1]
        before = torch.ones(steps, steps, dtype=columns.dtype, device=columns.device).tril(-1)
        values = torch.baddbmm(
            self._values.unsqueeze(1), before * removed.shares.unsqueeze(1), columns, alpha=-1
        )
        diagonal = torch.baddbmm(
            self._diagonal.unsqueeze(1), before.expand(len(columns), -1, -1), columns.square(), alpha=-1
        )
        least = removed.costs.unsqueeze(2)
        if self._penalty is not None:
            least = least - self._penalty.unsqueeze(1)
        cheaper = values.square_() < diagonal.mul_(2 * least)
        others = self.open.scatter(1, near, False).unsqueeze(1)
        if self._caps is not None:
            group = torch.where(going, self._caps.group.gather(1, chosen), -1)
            same = group.unsqueeze(2) == self._caps.group.unsqueeze(1)
            gone = same.cumsum(1) - same.long()
            others = others & (self._caps.left.gather(1, self._caps.group).unsqueeze(1) > gone)
        return (cheaper & others).any(2).cumsum(1) == 0

    def _take(self, columns: Tensor, shares: Tensor) -> None:
        """Let weights go that have these columns."""
        self._values -= torch.bmm(shares.unsqueeze(1), columns).squeeze(1)
        self._diagonal -= columns.square().sum(1)
        steps = columns.shape[1]
        self._factor[:, self._used : self._used + steps] = columns
        self._used += steps

    def _grow(self) -> None:
        """Twice the room for the factor, and only of the weights that may still go."""
        width = max(1, int(self.open.sum(1).max()))
        capacity = 2 * self._factor.shape[1]
        if width > 0.9 * self.open.shape[1]:
            factor = self._factor.new_empty(len(self.rows), capacity, self.open.shape[1])
            factor[:, : self._used] = self._factor[:, : self._used]
            self._factor = factor
            return
        near = (~self.open).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
        factor = self._factor.new_empty(len(near), capacity, width)
        for row, old, new in zip(near, self._factor, factor, strict=True):
            torch.index_select(old[: self._used], 1, row, out=new[: self._used])
        self._factor = factor
        self.open, self._places = self.open.gather(1, near), self._places.gather(1, near)
        self._values, self._diagonal = self._values.gather(1, near), self._diagonal.gather(1, near)
        self._penalty = None if self._penalty is None else self._penalty.gather(1, near)
        if self._caps is not None:
            self._caps = Caps(self._caps.group.gather(1, near), self._caps.left)


def _at(rows: Tensor, places: Tensor) -> Tensor:
    """``[B, k, w]`` at ``[B, m]`` of its last axis."""
    return rows.gather(2, places.unsqueeze(1).expand(-1, rows.shape[1], -1))


def _cheapest(cost: Tensor, count: int) -> Tensor:
    """The places of the cheapest of each row, lowest first ``[B, count]``."""
    count = min(count, cost.shape[1])
    counts = torch.full((len(cost),), count, device=cost.device)
    return smallest_of_rows(cost, counts).nonzero()[:, 1].view(-1, count)
