"""Which weights of a layer stay, by the alternating direction method of multipliers (ALPS).

The error at the layer's outputs is made small over weights that are free, held to others of which so many are zero; the
penalty ρ on their difference grows until the zeros no longer change places.
Reference: Meng, Behdin, Wang & Mazumder (2024), algorithm 1, with the schedule of ρ of the authors' code, but from a tenth
of their first ρ: a third less error at half of the weights, for half as many iterations more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.masks import smallest
from prunekit_plugins._curvature.grams import Moments

_FIRST = 0.01  # ρ, where the diagonal of H is one
_EVERY = 3  # iterations at one ρ
_GROWTH = (0.1, 1.3), (0.005, 1.2), (0.0, 1.1)
"""Of ρ, where a share of the kept weights above the first number has changed places since it last grew."""
_STIFF = 0.005  # the share that has to move before ρ may grow
_SOFTER = 0.2  # of ρ, where fewer move
_SETTLED, _AT_LEAST, _MOST = 3e-4, 30, 300
"""The share of changes that ends the search, and the iterations that it has at least and at most."""

Keep = Callable[[Tensor], Tensor]
"""Given the sizes of weights ``[groups, inputs, rows]``, which of them stay."""


class Reconstruction:
    """``Σ_r (w_r − ŵ_r)ᵀ (H + αI) (w_r − ŵ_r)``, in units in which the diagonal of H + αI is one.

    Attributes:
        matrix: H + αI in these units ``[groups, inputs, inputs]``.
        scale: What a weight is multiplied by to come to these units ``[groups, inputs, 1]``.
    """

    def __init__(self, moments: Moments, damping: float) -> None:
        self.matrix = moments.damped(damping)
        self.scale = self.matrix.diagonal(dim1=1, dim2=2).sqrt().unsqueeze(2)
        self.matrix.div_(self.scale).div_(self.scale.mT)
        self._values, self._vectors = torch.linalg.eigh(self.matrix)

    def softened(self, rho: float) -> Tensor:
        """``(H + αI + ρI)⁻¹``."""
        return torch.bmm(self._vectors / (self._values.clamp(min=0) + rho).unsqueeze(1), self._vectors.mT)


def search(problem: Reconstruction, weights: Tensor, keep: Keep) -> tuple[Tensor, Tensor]:
    """Look for the weights that stay.

    Args:
        problem: The layer's.
        weights: Before ``[groups, inputs, rows]``, in the problem's units; zero where they were pruned already.
        keep: Chooses by size.

    Returns:
        What stays, and values of all weights to begin with.
    """
    right = torch.bmm(problem.matrix, weights)
    kept = before = keep(weights.abs())
    held, dual = weights * kept, torch.zeros_like(weights)
    count, rho, growing = max(1, int(kept.count_nonzero())), _FIRST, False
    inverse = problem.softened(rho)
    free = weights
    for iteration in range(1, _MOST + 1):
        free = torch.bmm(inverse, held.mul_(rho).add_(right).sub_(dual))
        target = torch.add(free, dual, alpha=1 / rho)
        kept = keep(target.abs())
        held = target * kept
        dual = target.sub_(held).mul_(rho)  # the dual before, and ρ times what is free and not held
        if iteration % _EVERY:
            continue
        changed, before = int((kept ^ before).count_nonzero()), kept
        if (growing and not changed) or (iteration >= _AT_LEAST and changed < _SETTLED * count):
            break
        growing = growing or changed > _STIFF * count
        if growing:
            rho *= next(growth for share, growth in _GROWTH if changed > share * count)
        else:
            rho *= _SOFTER
            if changed:
                before = keep(weights.abs())
                held, dual = weights * before, torch.zeros_like(weights)
        inverse = problem.softened(rho)
    return keep(free.abs()), free


@dataclass(frozen=True)
class Largest:
    """Keeps the largest weights of a layer, all but as many as are to go.

    Attributes:
        gone: What is pruned already ``[groups, inputs, rows]``; it stays so.
        share: Weights that are pruned afterwards, those included.
        spared: What stays as long as there are others.
        pattern: n and m: of m inputs side by side in ``order``, m − n go at most.
        order: ``[inputs]``, in which a pattern's inputs stand side by side.
    """

    gone: Tensor
    share: int
    spared: Tensor | None = None
    pattern: tuple[int, int] | None = None
    order: Tensor | None = None

    def __call__(self, sizes: Tensor) -> Tensor:
        """What stays."""
        sizes = sizes.masked_fill(self.gone, -1.0)
        if self.spared is not None:
            sizes = sizes.masked_fill(self.spared & ~self.gone, torch.inf)
        if self.pattern is not None:
            sizes = sizes.masked_fill(~self._may_go(sizes), torch.inf)
        return smallest(sizes.flatten(), self.share).logical_not_().view_as(sizes)

    def _may_go(self, sizes: Tensor) -> Tensor:
        assert self.pattern is not None
        n, m = self.pattern
        ordered = sizes if self.order is None else sizes[:, self.order]
        grouped = ordered.reshape(len(ordered), -1, m, ordered.shape[2])
        first = grouped.argsort(dim=2, stable=True)[:, :, : m - n]
        among = torch.zeros_like(grouped, dtype=torch.bool).scatter_(2, first, True).flatten(1, 2)
        if self.order is None:
            return among | self.gone
        return torch.empty_like(among).index_copy_(1, self.order, among) | self.gone
