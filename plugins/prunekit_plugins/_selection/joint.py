"""The joint problem of a step, and what it cannot be better than: a bound by Lagrangian duality.

The problem is to make ``P(w) = gᵀ(w − θ) + ½‖A(w − θ)‖² + α/2·‖w − θ‖²`` small with a given number of non-zeros among
the weights that are open. For every ν, ``½‖z‖² ≥ νᵀz − ½‖ν‖²`` takes the coupling out: with ``s = Aᵀν + g``, each weight
then costs ``−s²/2α`` at its best if it stays and ``½αθ² − sθ`` if it goes, the difference being ``(s − αθ)²/2α``, so that

    P(w) ≥ D(ν) = −½‖ν‖² − Σ s²/2α + the smallest (s − αθ)²/2α, as many as weights go.

That is ``−νᵀAθ − ½‖ν‖² − T_k(Aᵀν + g − αθ)/2α − gᵀθ + α/2·‖θ‖²``, T_k the sum of the k largest squares, without its
cancellation. D is concave with kinks; its maximum is that of the relaxation by the k-support norm (Argyriou, Foygel &
Srebro, 2012), the tightest convex one of ``α/2·‖w‖²`` with k non-zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.masks import smallest
from prunekit_plugins._curvature.rows import Rows
from prunekit_plugins._linalg.quasi_newton import minimised

UNIT = 2.0**-53
"""A rounding in float64, relative, at most."""

_BLOCK = 1024  # numbers that are added up in any order; the sums of blocks are added exactly
_OPERATIONS = 16  # roundings of a number before it is added, and more

GAIN = 3e-6
"""Of the bound in ten steps, below which the search for it ends."""

EVALUATIONS = 400
"""Of the dual, at most, each a product with A and one with Aᵀ."""

_POWERS = 8  # products by which the largest eigenvalue is estimated


@dataclass(frozen=True)
class Joint:
    """A problem; vectors are flat over all weights, float64.

    Attributes:
        rows: A.
        weights: θ.
        gradient: g.
        damping: α > 0.
        open_: What may stay, bool; all else is zero and stays zero, in θ as well.
        quotas: Parts of the weights, and how many of each may stay, at most.
    """

    rows: Rows
    weights: Tensor
    gradient: Tensor
    damping: float
    open_: Tensor
    quotas: Sequence[tuple[slice, int]]

    def slope(self, nu: Tensor) -> Tensor:
        """What each weight costs to move, ``s = Aᵀν + g``."""
        return self.rows.back(nu) + self.gradient

    def chosen(self, cost: Tensor) -> Tensor:
        """The dearest of what is open, as many of each part as may stay, bool."""
        kept = torch.zeros_like(self.open_)
        for part, count in self.quotas:
            several = torch.where(self.open_[part], cost[part], -torch.inf)
            kept[part] = ~smallest(several, max(0, len(several) - count))
        return kept & self.open_

    def inner(self, nu: Tensor) -> tuple[float, Tensor, Tensor]:
        """D(ν), what stays at the minimum that it is, and the change of the weights there; not rounded downwards."""
        slope = self.slope(nu)
        pull = slope.sub(self.weights, alpha=self.damping)  # s − αθ
        kept = self.chosen(pull.square())
        pull.masked_fill_(~kept, 0.0)
        # If all went, ½αθ² − sθ each; what stays saves (s − αθ)²/2α, and is at −s/α from θ.
        gone = 0.5 * self.damping * float(self.weights @ self.weights) - float(slope @ self.weights)
        change = self.weights.add(pull, alpha=1 / self.damping).neg_()
        return gone - 0.5 * float(pull @ pull) / self.damping - 0.5 * float(nu @ nu), kept, change


@dataclass(frozen=True)
class Relaxed:
    """The end of the search for the best bound.

    Attributes:
        nu: Where the dual is largest, as far as it was found.
        kept: What stays at the minimum there, bool; a choice as good as the relaxation is tight.
        values: The weights there, zero where they go; not fitted to each other.
        bound: The dual there, rounded in any direction.
        evaluations: Of the dual.
    """

    nu: Tensor
    kept: Tensor
    values: Tensor
    bound: float
    evaluations: int


def relaxed(problem: Joint, gain: float = GAIN, limit: int = EVALUATIONS) -> Relaxed:
    """Make the dual as large as it gets, from ν = 0 by quasi-Newton steps on it as it is.

    Args:
        problem: The problem.
        gain: The end: less than this share of the bound in ten steps.
        limit: Most evaluations.
    """

    def negative(nu: Tensor) -> tuple[float, Tensor]:
        value, _, change = problem.inner(nu)
        return -value, nu - problem.rows.along(change)

    start = problem.weights.new_zeros(problem.rows.count)
    length = 1 / (1 + _largest_eigenvalue(problem) / problem.damping)
    found = minimised(negative, start, length, gain, limit)
    bound, kept, change = problem.inner(found.point)
    values = torch.where(kept, problem.weights + change, 0.0)
    return Relaxed(found.point, kept, values, bound, found.evaluations)


def _largest_eigenvalue(problem: Joint) -> float:
    """Of AAᵀ over what is open, by powers, from below."""
    vector = torch.where(problem.open_, problem.gradient - problem.damping * problem.weights, 0.0)
    size = 0.0
    for _ in range(_POWERS):
        norm = float(vector.norm())
        if not 0 < norm < math.inf:
            break
        moved = problem.rows.along(vector / norm)
        size = float(moved @ moved)
        vector = torch.where(problem.open_, problem.rows.back(moved), 0.0)
    return size if math.isfinite(size) else 0.0


def lower_bound(problem: Joint, nu: Tensor) -> float:
    """D(ν) in float64, less what rounding can have added: at most P of any weights within the quotas.

    The numbers in A, θ, g, α and ν are taken as exact. A product is off by ``γ_n = n·u/(1 − n·u)`` times the product of
    the sizes, whatever the order of its sums (Higham, 2002, section 3.1); each weight's two costs are taken at the
    worst end of what that leaves of s; sums are off by γ of their blocks. A set that rounding has chosen wrongly does
    no harm, since the smallest of lower bounds are added.
    """
    exact, alpha, open_ = problem.rows.exact, problem.damping, problem.open_
    gradient = problem.gradient[open_]
    slope = exact.back(nu)[open_]
    off = problem.rows.sizes.back(nu.abs())[open_].mul_(2 * _gamma(exact.terms))
    slope += gradient
    off += slope.abs() * (2 * UNIT)
    weights = problem.weights[open_]
    height = slope.abs() + off
    stays = height.square() / (-2 * alpha)
    goes = 0.5 * alpha * weights.square() - slope * weights - off * weights.abs()
    sizes = -stays + 0.5 * alpha * weights.square() + height * weights.abs()
    extra = torch.full_like(problem.weights, torch.inf)
    extra[open_] = goes - stays
    squares = nu.square()
    total = [-0.5 * _sum(squares), _sum(stays)]
    for part, count in problem.quotas:
        inside = extra[part][open_[part]]
        going = smallest(inside, max(0, len(inside) - count))
        total.append(_sum(inside[going]))
    allowance = 4 * _gamma(_BLOCK + _OPERATIONS) * (_sum(sizes) + _sum(squares))
    found = math.fsum([*total, -allowance])
    return found - 4 * UNIT * abs(found) if math.isfinite(found) else -math.inf


def upper_value(problem: Joint, values: Tensor) -> float:
    """P of some weights in float64, and what rounding can have taken away: no less than it is."""
    exact, alpha = problem.rows.exact, problem.damping
    change = torch.where(problem.open_, values - problem.weights, 0.0)
    along = exact.along(change)
    off = problem.rows.sizes.along(change.abs()).mul_(2 * _gamma(exact.terms + 1))
    curved = (along.abs() + off).square()
    first, second = problem.gradient * change, change.square()
    total = [_sum(first), 0.5 * _sum(curved), 0.5 * alpha * _sum(second)]
    allowance = 4 * _gamma(_BLOCK + _OPERATIONS) * (_sum(first.abs()) + _sum(curved) + alpha * _sum(second))
    found = math.fsum([*total, allowance])
    return found + 4 * UNIT * abs(found)


def _sum(values: Tensor) -> float:
    """Off by no more than ``γ_1024`` of the sum of sizes."""
    if not len(values):
        return 0.0
    padded = torch.nn.functional.pad(values, (0, -len(values) % _BLOCK))
    return math.fsum(padded.view(-1, _BLOCK).sum(1).tolist())


def _gamma(terms: int) -> float:
    """``n·u/(1 − n·u)``."""
    return terms * UNIT / (1 - terms * UNIT)
