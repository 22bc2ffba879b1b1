"""Greedy elimination: one weight after another, in many blocks at once.

In each block, again and again the weight goes whose removal costs the quadratic model least when the others make
up for it, ``w_q² / (2 [H⁻¹]_qq)``; then ``w ← w − w_q H⁻¹e_q / [H⁻¹]_qq`` and
``H⁻¹ ← H⁻¹ − H⁻¹e_q e_qᵀH⁻¹ / [H⁻¹]_qq``, which is the inverse without row and column q.
References: Hassibi & Stork (1992); Frantar & Alistarh (2022), algorithm 1.

Blocks do not touch each other, so their order is free: each leaves a trace of what it would give up and at which
cost, and taking the cheapest next weight over all blocks is the same as cutting all traces at one level of the
running maximum of their costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit_plugins._linalg.inversion import inverse as inverted

_LAZY = 128  # removals that are kept as columns before the inverse itself is brought up to date


@dataclass(frozen=True)
class Traces:
    """What each block gives up, in order.

    Attributes:
        order: ``[R, m]``, positions in the block; −1 after a trace's end.
        level: ``[R, m]``, the highest cost so far, in the loss's units; infinite after a trace's end.
    """

    order: Tensor
    level: Tensor


@dataclass
class Caps:
    """How many weights of a group may still go, where a pattern or a layer's share limits that.

    Attributes:
        group: ``[R, k]``, the group of each weight.
        left: ``[R, groups]``.
    """

    group: Tensor
    left: Tensor


def eliminate(
    inverse: Tensor,
    values: Tensor,
    there: Tensor,
    enough: Callable[[Tensor], float],
    damped: Callable[[], Tensor] | None = None,
    refresh: int = 0,
    caps: Caps | None = None,
    penalty: Tensor | None = None,
) -> Traces:
    """Remove weights from every block until all that is left costs more than is needed.

    Args:
        inverse: H⁻¹ ``[R, k, k]``; the identity outside the blocks.
        values: The model's minimum ``[R, k]``: the weights, or a Newton step from them.
        there: False outside the blocks ``[R, k]``.
        enough: Given the running maxima of the costs found since it was last asked (infinite for none), says above
            which level no more are wanted. Asked every few removals.
        damped: H ``[R, k, k]``, for fresh inverses.
        refresh: After so many removals from a block, its inverse is computed anew from what is left; 0 never.
        caps: Limits to what may go; changed in place.
        penalty: Added to the cost of each weight ``[R, k]``.
    """
    values, open_ = values.clone(), there.clone()
    if caps is not None:
        open_ &= caps.left.gather(1, caps.group) > 0
    blocks = torch.arange(len(values), device=values.device)
    work = Eliminating(blocks, inverse, values, open_, values.new_zeros(len(values)), caps, penalty)
    count = int(there.sum(1).max()) if len(there) else 0
    orders = torch.full((len(values), count), -1, dtype=torch.long, device=values.device)
    levels = values.new_full((len(values), count), torch.inf)
    limit, removed = enough(levels[:, :0]), 0
    while removed < count and len(work.blocks):
        steps = min(_LAZY, count - removed)
        if refresh:
            steps = min(steps, refresh - removed % refresh)
        now = slice(removed, removed + steps)
        gone = work.remove(steps, limit)
        orders[work.blocks, now], levels[work.blocks, now] = gone.orders, gone.levels
        limit = enough(gone.levels)
        removed += steps
        columns = work.keep((work.level <= limit) & work.open.any(1), gone.columns)
        if refresh and damped is not None and removed % refresh == 0:
            trace = orders[work.blocks, :removed]
            left = there[work.blocks].scatter(1, trace, False)
            work.inverse = _fresh(damped()[work.blocks], left)
        elif len(work.blocks):
            work.inverse = torch.baddbmm(work.inverse, columns.transpose(1, 2), columns, alpha=-1)
    return Traces(orders[:, :removed], levels[:, :removed])


@dataclass(frozen=True)
class Removed:
    """What some blocks have lost.

    Attributes:
        columns: u ``[B, steps, k]``, by which the inverse is now less by ``Σ u uᵀ``.
        shares: ``[B, steps]``, how much of each column the values have lost.
        orders: What went ``[B, steps]``, −1 where nothing did.
        levels: The highest cost so far ``[B, steps]``, infinite where nothing went.
        costs: Of the cheapest weight ``[B, steps]``, whether it went or not; infinite where none may go.
    """

    columns: Tensor
    shares: Tensor
    orders: Tensor
    levels: Tensor
    costs: Tensor


@dataclass
class Eliminating:
    """The blocks that still lose weights.

    Attributes:
        blocks: Which they are ``[B]``.
        inverse: As it was when last brought up to date ``[B, k, k]``; replaced, never changed.
        values: Of the weights now ``[B, k]``.
        open: What may go ``[B, k]``.
        level: The highest cost so far ``[B]``.
        caps: See :func:`eliminate`.
        penalty: See :func:`eliminate`.
    """

    blocks: Tensor
    inverse: Tensor
    values: Tensor
    open: Tensor
    level: Tensor
    caps: Caps | None
    penalty: Tensor | None

    def remove(self, steps: int, limit: float) -> Removed:
        """Take up to so many weights from each block, none that costs more than the limit."""
        count = len(self.blocks)
        rows = torch.arange(count, device=self.values.device)
        columns = self.inverse.new_zeros(count, steps, self.inverse.shape[1])
        orders = self.blocks.new_empty(count, steps)
        levels, costs, shares = (self.level.new_empty(count, steps) for _ in range(3))
        # What cannot go is never asked for: a one keeps the quotients finite.
        diagonal = self.inverse.diagonal(dim1=1, dim2=2).clone().masked_fill_(~self.open, 1.0)
        for step in range(steps):
            cost = self.values.square().div_(2 * diagonal)
            if self.penalty is not None:
                cost += self.penalty
            least, q = cost.masked_fill_(~self.open, torch.inf).min(1)
            self.level = torch.maximum(self.level, least)
            going = (self.level <= limit) & (least < torch.inf)
            column = self.inverse[rows, q]  # symmetric
            if step:
                before = columns[:, :step]
                column = column - torch.bmm(before[rows, :, q].unsqueeze(1), before).squeeze(1)
            root = column[rows, q].sqrt()
            column = torch.where(going.unsqueeze(1), column / root.unsqueeze(1), 0.0)
            columns[:, step] = column
            share = torch.where(going, self.values[rows, q] / root, 0.0)
            self.values.addcmul_(column, share.unsqueeze(1), value=-1)
            diagonal.addcmul_(column, column, value=-1)
            diagonal[rows, q] = torch.where(going, 1.0, diagonal[rows, q])
            self.open[rows, q] &= ~going
            if self.caps is not None:
                _close(self.caps, self.open, rows, q, going)
            shares[:, step], costs[:, step] = share, least
            orders[:, step] = torch.where(going, q, -1)
            levels[:, step] = torch.where(going, self.level, torch.inf)
        return Removed(columns, shares, orders, levels, costs)

    def keep(self, which: Tensor, columns: Tensor) -> Tensor:
        """Go on with some of the blocks; returns their columns."""
        if bool(which.all()):
            return columns
        self.blocks, self.inverse, self.values = self.blocks[which], self.inverse[which], self.values[which]
        self.open, self.level = self.open[which], self.level[which]
        self.penalty = None if self.penalty is None else self.penalty[which]
        if self.caps is not None:
            self.caps = Caps(self.caps.group[which], self.caps.left[which])
        return columns[which]


def _close(caps: Caps, open_: Tensor, rows: Tensor, q: Tensor, going: Tensor) -> None:
    group = caps.group[rows, q]
    caps.left[rows, group] -= going.to(caps.left.dtype)
    full = going & (caps.left[rows, group] <= 0)
    open_ &= ~(full.unsqueeze(1) & (caps.group == group.unsqueeze(1)))


def _fresh(damped: Tensor, left: Tensor) -> Tensor:
    """Inverses over what is left, zero elsewhere."""
    pairs = left.unsqueeze(2) & left.unsqueeze(1)
    inverses, _ = inverted(torch.where(pairs, damped, 0.0) + torch.diag_embed((~left).to(damped)))
    return inverses.masked_fill_(~pairs, 0.0)
