"""Swapping pairs of weights on a quadratic model whose kept weights stay where they are.

With S the weights that go, the model is ``Q(S) = Σ_S b_i + ½ Σ_S Σ_S A_ij`` with ``A_ij = θ_i (C + αI)_ij θ_j`` and
``b_i = −g_i θ_i``. If p comes back and k goes in its place, it changes by ``½A_pp − r_p + ½A_kk + r_k − A_pk`` with
``r_i = b_i + Σ_S A_ij``: what each does by itself, and their cross term. The best pair is swapped until none makes the
model smaller, the local search of Yu et al. (2022).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from prunekit_plugins._selection.quadratic import Quadratic

_ALL = 4096  # weights of which all pairs are looked at
_SOME = 512  # of more weights, the most promising
_EQUAL = 1e-12  # of what the pruned weights cost by themselves: a smaller gain is rounding


def best_by_pairs(
    model: Quadratic,
    open_: Tensor,
    layers: Sequence[tuple[slice, int]],
    rounds: int,
    starts: Iterable[Tensor],
) -> Tensor:
    """Swap pairs from several choices, and take the best of what comes of them.

    Where few enough weights are open, every pair is looked at until no swap helps, also from the choice that grows
    by the cheapest weight at a time.

    Args:
        model: The quadratic model; kept weights stay.
        open_: What may be kept, bool, flat.
        layers: Parts of the weights, and how many of each are kept; a swap stays within a part.
        rounds: Sets of promising weights that are looked at, where they are too many for all pairs.
        starts: Choices that keep as many, bool, flat.

    Returns:
        What is kept, bool, flat.
    """
    parts = torch.zeros_like(open_, dtype=torch.long)
    for number, (part, _) in enumerate(layers):
        parts[part] = number
    everything = open_.nonzero().squeeze(1)
    if len(everything) > _ALL:
        ends = [_promising(model, open_, start, layers, parts, rounds) for start in starts]
        return min(ends, key=lambda kept: model.height(model.weights * kept))
    pairs = _Pairs(model, everything, parts)
    alone = -model.gradient[everything] * model.weights[everything]
    begins = [start[everything] for start in starts]
    begins.append(pairs.grown(alone, begins[0]))
    ends = [pairs.swapped(pairs.pull(alone, kept), kept) for kept in begins]
    kept = torch.zeros_like(open_)
    kept[everything] = min(ends, key=lambda end: float((pairs.pull(alone, end) + alone)[~end].sum()))
    return kept


def _promising(
    model: Quadratic,
    open_: Tensor,
    kept: Tensor,
    layers: Sequence[tuple[slice, int]],
    parts: Tensor,
    rounds: int,
) -> Tensor:
    """Swap pairs among the kept weights that cost least and the pruned ones whose return gives most, some rounds."""
    half = 0.5 * model.diagonal * model.weights.square()
    for _ in range(rounds):
        pull = -model.weights * model.slope(model.weights * kept)
        chosen = torch.zeros_like(kept)
        for part, _ in layers:
            for side, change in ((kept, half + pull), (open_ & ~kept, half - pull)):
                count = min(_SOME // (2 * len(layers)), int(side[part].count_nonzero()))
                values = torch.where(side[part], change[part], torch.inf)
                chosen[part][values.topk(count, largest=False).indices] = True
        indices = chosen.nonzero().squeeze(1)
        swapped = _Pairs(model, indices, parts).swapped(pull[indices], kept[indices])
        if torch.equal(swapped, kept[indices]):
            break
        kept = kept.clone()
        kept[indices] = swapped
    return kept


class _Pairs:
    """Some of the weights with the cross terms of all their pairs; tensors are over these weights."""

    def __init__(self, model: Quadratic, indices: Tensor, parts: Tensor) -> None:
        weights = model.weights[indices]
        curvature = model.factors.among(indices)
        curvature.diagonal().add_(model.damping)
        self.terms = curvature.mul_(weights).mul_(weights[:, None])  # A
        self._half = self.terms.diagonal() / 2
        self._part = parts[indices]

    def pull(self, alone: Tensor, kept: Tensor) -> Tensor:
        """r, where all that go are among these weights."""
        return alone + self.terms @ (~kept).to(self.terms.dtype)

    def grown(self, alone: Tensor, like: Tensor) -> Tensor:
        """What is kept when the cheapest goes, given those gone before, until as many are gone as in ``like``."""
        pull, kept = alone.clone(), torch.ones_like(like)
        budget = (
            torch.bincount(self._part[~like], minlength=int(self._part.max()) + 1).tolist()
            if len(like)
            else []
        )
        cost = self._half + pull
        for number, count in enumerate(budget):
            if not count:
                cost[self._part == number] = torch.inf
        for _ in range(sum(budget)):
            goes = int(cost.argmin())
            kept[goes] = False
            cost += self.terms[goes]
            cost[goes] = torch.inf
            part = int(self._part[goes])
            budget[part] -= 1
            if not budget[part]:
                cost[self._part == part] = torch.inf
        return kept

    def swapped(self, pull: Tensor, kept: Tensor) -> Tensor:
        """What is kept when the best pair has been swapped until no swap makes the model smaller."""
        pull, kept = pull.clone(), kept.clone()
        gone, there = (~kept).nonzero().squeeze(1), kept.nonzero().squeeze(1)
        least = _EQUAL * float(self._half[gone].sum())
        if not len(gone) or not len(there):
            return kept
        crossed = self._crossed(gone[:, None], there)
        change = torch.empty_like(crossed)
        while True:
            torch.sub((self._half + pull)[there], crossed, out=change)
            best, columns = change.min(1)
            best += (self._half - pull)[gone]
            row = int(best.argmin())
            if not float(best[row]) < -least:
                return kept
            column = int(columns[row])
            back, out = gone[row].clone(), there[column].clone()
            kept[back], kept[out] = True, False
            gone[row], there[column] = out, back
            pull += self.terms[out] - self.terms[back]
            crossed[row] = self._crossed(out, there)
            crossed[:, column] = self._crossed(gone, back)

    def _crossed(self, gone: Tensor, there: Tensor) -> Tensor:
        """A between weights, −∞ where they cannot be swapped."""
        return self.terms[gone, there].masked_fill_(self._part[gone] != self._part[there], -torch.inf)
