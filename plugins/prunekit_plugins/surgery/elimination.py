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

from prunekit_plugins.surgery.inversion import inverse as inverted

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
    blocks = torch.arange(len(values), device=values.device)  # those still at work
    values, open_ = values.clone(), there.clone()  # the inverse is replaced, never changed
    if caps is not None:
        open_ &= caps.left.gather(1, caps.group) > 0
    count = int(there.sum(1).max()) if len(there) else 0
    orders = torch.full((len(values), count), -1, dtype=torch.long, device=values.device)
    levels = values.new_full((len(values), count), torch.inf)
    level = values.new_zeros(len(values))
    diagonal = inverse.diagonal(dim1=1, dim2=2).clone()
    removed = 0
    limit = enough(levels[:, :0])
    while len(blocks) and removed < count:
        steps = min(_LAZY, count - removed)
        if refresh:
            steps = min(steps, refresh - removed % refresh)
        rows = torch.arange(len(blocks), device=values.device)
        columns = inverse.new_zeros(len(blocks), steps, inverse.shape[1])
        for step in range(steps):
            cost = values.square().div_(2 * diagonal)
            if penalty is not None:
                cost += penalty
            cost.masked_fill_(~open_, torch.inf)
            least, q = cost.min(1)
            level = torch.maximum(level, least)
            going = level <= limit
            going &= least < torch.inf
            column = inverse[rows, q]  # symmetric
            if step:
                before = columns[:, :step]
                column = column - torch.bmm(before[rows, :, q].unsqueeze(1), before).squeeze(1)
            root = column[rows, q].sqrt()
            column = torch.where(going.unsqueeze(1), column / root.unsqueeze(1), 0.0)
            columns[:, step] = column
            share = torch.where(going, values[rows, q] / root, 0.0)
            values.addcmul_(column, share.unsqueeze(1), value=-1)
            diagonal.addcmul_(column, column, value=-1)
            open_[rows, q] &= ~going
            diagonal[rows, q] = torch.where(going, 1.0, diagonal[rows, q])  # unused; keeps quotients finite
            orders[blocks, removed + step] = torch.where(going, q, -1)
            levels[blocks, removed + step] = torch.where(going, level, torch.inf)
            if caps is not None:
                _close(caps, open_, rows, q, going)
        limit = enough(levels[blocks, removed : removed + steps])
        removed += steps
        working = (level <= limit) & open_.any(1)
        at_work = working.nonzero().squeeze(1)
        if not len(at_work):
            break
        values, open_, level, blocks = values[at_work], open_[at_work], level[at_work], blocks[at_work]
        penalty = None if penalty is None else penalty[at_work]
        if caps is not None:
            caps = Caps(caps.group[at_work], caps.left[at_work])
        if refresh and damped is not None and removed % refresh == 0:
            # Only where nothing has been left out is the removed part of a block known to be its closed part.
            gone = torch.zeros_like(open_)
            trace = orders[blocks, :removed]
            gone.scatter_(1, trace.clamp(min=0), trace >= 0)
            inverse = _fresh(damped()[blocks], there[blocks] & ~gone)
        else:
            if len(at_work) < len(columns):
                columns, inverse = columns[at_work], inverse[at_work]
            inverse = torch.baddbmm(inverse, columns.transpose(1, 2), columns, alpha=-1)
        diagonal = inverse.diagonal(dim1=1, dim2=2).clone().masked_fill_(~open_, 1.0)
    return Traces(orders[:, :removed], levels[:, :removed])


def _close(caps: Caps, open_: Tensor, rows: Tensor, q: Tensor, going: Tensor) -> None:
    group = caps.group[rows, q]
    caps.left[rows, group] -= going.to(caps.left.dtype)
    full = going & (caps.left[rows, group] <= 0)
    open_ &= ~(full.unsqueeze(1) & (caps.group == group.unsqueeze(1)))


def _fresh(damped: Tensor, left: Tensor) -> Tensor:
    """Inverses over what is left, zero elsewhere."""
    pairs = left.unsqueeze(2) & left.unsqueeze(1)
    found, _ = inverted(torch.where(pairs, damped, 0.0) + torch.diag_embed((~left).to(damped)))
    return found.masked_fill_(~pairs, 0.0)
