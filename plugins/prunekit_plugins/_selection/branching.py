"""The best choice of all, by branch and bound; for as many weights as fit into a small dense matrix.

The problem is to make ``½wᵀHw − rᵀw`` small with at most k non-zeros. At a node some weights are in, some are out and the
rest is free. Those that are in are minimised out, which leaves a Schur complement S over the free ones; its bound is that
of :mod:`prunekit_plugins._selection.joint` with the largest diagonal D that was found with ``S − D`` positive semidefinite
in place of αI: each weight in or out makes S steeper, so that the bound closes on the way down. A D that held for the
parent holds for its children. A weight that would take the bound above the best choice so far by changing sides stays on
its own. References: Bertsimas & Shioda (2009), for the tree; Frangioni & Gentile (2007), for D.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit_plugins._linalg.quasi_newton import minimised
from prunekit_plugins._selection.joint import UNIT

_GAIN, _EVALUATIONS = 1e-5, 60  # of the search for a node's bound
_RISES = 2  # times that the diagonal is made larger at a node
_ROOT_RISES = 12
_SHARE = 0.95  # of what could be added to the diagonal, so that something is left to add to
_ROUNDINGS = (
    8  # of each weight in a solution, amplified by H's condition, relative to the largest gain of any weights
)


@dataclass(frozen=True)
class Best:
    """The end of a search.

    Attributes:
        kept: The best choice that was found, bool.
        values: Its weights.
        height: ``½wᵀHw − rᵀw`` of them.
        bound: What no choice is below, by more than rounding; the height, where the search has ended by itself.
        nodes: How many were looked at.
    """

    kept: Tensor
    values: Tensor
    height: float
    bound: float
    nodes: int


def best_choice(matrix: Tensor, wanted: Tensor, count: int, starts: list[Tensor], limit: int) -> Best:
    """Search all choices.

    Args:
        matrix: H, positive definite, float64.
        wanted: r.
        count: k.
        starts: Choices to begin with, bool, with at most k.
        limit: Most nodes.

    Examples:
        >>> eye = torch.eye(3, dtype=torch.float64)
        >>> found = best_choice(eye, torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64), 2, [], 100)
        >>> found.kept.tolist(), found.height
        ([False, True, True], -6.5)
    """
    tree = _Tree(matrix, wanted, count)
    for start in starts:
        tree.offer(start)
    tree.search(limit)
    return Best(tree.kept, tree.values, tree.height, tree.bound, tree.nodes)


@dataclass(frozen=True)
class _Node:
    """Which weights are in, and free; and what is known of D over all of them."""

    inside: Tensor
    free: Tensor
    diagonal: Tensor


class _Tree:
    def __init__(self, matrix: Tensor, wanted: Tensor, count: int) -> None:
        self.matrix, self.wanted, self.count = matrix, wanted, count
        everything, spectrum = torch.linalg.solve(matrix, wanted), torch.linalg.eigvalsh(matrix)
        self.rounding = (
            0.5
            * float(wanted @ everything)
            * min(1.0, _ROUNDINGS * len(wanted) * UNIT * float(spectrum[-1] / spectrum[0]))
        )
        self.kept = torch.zeros_like(wanted, dtype=torch.bool)
        self.values = torch.zeros_like(wanted)
        self.height, self.bound, self.nodes = 0.0, -math.inf, 0

    def offer(self, kept: Tensor) -> None:
        """Take a choice if it is the best so far."""
        height, values = self._fitted(kept)
        if height < self.height:
            self.kept, self.values, self.height = kept.clone(), values, height

    def _fitted(self, kept: Tensor) -> tuple[float, Tensor]:
        values = torch.zeros_like(self.wanted)
        values[kept] = torch.linalg.solve(self.matrix[kept][:, kept], self.wanted[kept])
        return -0.5 * float(self.wanted @ values), values

    def search(self, limit: int) -> None:
        """Best bound first, until nothing is left that could be better."""
        size = len(self.wanted)
        inside = torch.zeros(size, dtype=torch.bool)
        root = _Node(inside, ~inside, _raised(self.matrix, torch.zeros_like(self.wanted), _ROOT_RISES))
        bound, children = self._looked_at(root)
        heap = [(bound, 0, children)]
        order = 1
        while heap and self.nodes < limit:
            bound, _, children = heapq.heappop(heap)
            if bound >= self.height - self.rounding:
                heap.clear()
                break
            for child in children:
                lower, further = self._looked_at(child)
                lower = max(lower, bound)
                if lower < self.height - self.rounding:
                    heapq.heappush(heap, (lower, order, further))
                    order += 1
        left = min((bound for bound, _, _ in heap), default=self.height)
        self.bound = min(left, self.height) - self.rounding

    def _looked_at(self, node: _Node) -> tuple[float, list[_Node]]:
        """A node's bound, and what it leaves to look at: nothing, where a choice of it is known to be its best."""
        self.nodes += 1
        inside, free = node.inside, node.free
        left = self.count - int(inside.count_nonzero())
        if left <= 0 or int(free.count_nonzero()) <= left:
            whole = inside if left <= 0 else inside | free
            height, _ = self._fitted(whole)
            self.offer(whole)
            return height, []
        schur, wanted, constant = self._reduced(inside, free)
        diagonal = node.diagonal[free]
        if self.nodes > 1:
            diagonal = _raised(schur, diagonal, _RISES)
        relaxed = _Relaxed(schur, wanted, diagonal, left)
        bound, worth = relaxed.bound(self.height - constant - self.rounding)
        bound += constant
        threshold, below = worth.topk(left + 1).values[-2:].tolist()
        chosen = inside.clone()
        places = free.nonzero().squeeze(1)
        chosen[places[worth.topk(left).indices]] = True
        self.offer(chosen)
        room = self.height - self.rounding - bound
        if room <= 0:
            return bound, []
        # A free weight that the bound keeps, and would be above the best with it out, is in; and the reverse.
        surely_in = (worth >= threshold) & (worth - below > room)
        surely_out = (worth <= below) & (threshold - worth > room)
        inside, free = inside.clone(), free.clone()
        inside[places[surely_in]] = True
        free[places[surely_in | surely_out]] = False
        whole = node.diagonal.clone()
        whole[places] = diagonal
        open_ = free[places]
        if not bool(open_.any()):
            return bound, [_Node(inside, free, whole)]
        between = (worth - (threshold + below) / 2).abs().masked_fill(~open_, torch.inf)
        place = places[int(between.argmin())]
        free[place] = False
        with_it = inside.clone()
        with_it[place] = True
        return bound, [_Node(with_it, free, whole), _Node(inside, free, whole)]

    def _reduced(self, inside: Tensor, free: Tensor) -> tuple[Tensor, Tensor, float]:
        """S, r over the free weights, and the height of what is in by itself."""
        among, wanted = self.matrix[free][:, free], self.wanted[free]
        if not bool(inside.any()):
            return among, wanted, 0.0
        across = self.matrix[inside][:, free]
        solved = torch.linalg.solve(
            self.matrix[inside][:, inside], torch.cat([across, self.wanted[inside][:, None]], 1)
        )
        own = solved[:, -1]
        schur = among - across.T @ solved[:, :-1]
        return (schur + schur.T) / 2, wanted - across.T @ own, -0.5 * float(self.wanted[inside] @ own)


class _Relaxed:
    """``½wᵀSw − rᵀw`` with S = BᵀB + D: for every ν at least ``−½‖ν‖² − T_k((r − Bᵀν)/√D)/2``."""

    def __init__(self, matrix: Tensor, wanted: Tensor, diagonal: Tensor, count: int) -> None:
        self.matrix, self.wanted, self.diagonal, self.count = matrix, wanted, diagonal, count
        values, vectors = torch.linalg.eigh(matrix - diagonal.diag())
        self.factor = vectors.T * values.clamp(min=0).sqrt()[:, None]

    def bound(self, enough: float) -> tuple[float, Tensor]:
        """As high as it gets, or as is enough; and what each weight is worth there, more being kept."""

        def negative(nu: Tensor) -> tuple[float, Tensor]:
            pull = self.wanted - nu @ self.factor
            worth = pull.square() / self.diagonal
            largest = worth.topk(self.count)
            values = torch.zeros_like(pull)
            values[largest.indices] = (pull / self.diagonal)[largest.indices]
            return 0.5 * float(nu @ nu) + 0.5 * float(largest.values.sum()), nu - self.factor @ values

        start = self.factor @ torch.linalg.solve(self.matrix, self.wanted)
        length = 1 / (1 + float((self.matrix.diagonal() / self.diagonal).max()))
        found = minimised(negative, start, length, _GAIN, _EVALUATIONS, -enough)
        pull = self.wanted - found.point @ self.factor
        return -found.value, 0.5 * pull.square() / self.diagonal


def _raised(matrix: Tensor, diagonal: Tensor, times: int) -> Tensor:
    """A larger D with ``S − D`` positive semidefinite, from one that has it: what each place could add alone, scaled."""
    for _ in range(times):
        left = matrix - diagonal.diag()
        values, vectors = torch.linalg.eigh(left)
        tiny = 1e-12 * float(values[-1])
        inverse = vectors.square() @ (1 / values.clamp(min=tiny))
        alone = 1 / inverse
        scale = inverse.sqrt()
        share = float(torch.linalg.eigvalsh(scale[:, None] * left * scale)[0])
        if share <= 0:
            break
        diagonal = diagonal + _SHARE * share * alone
    return diagonal
