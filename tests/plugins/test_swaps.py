"""Swaps of kept and pruned weights against the rule written out: every pair of a row tried, its error from scratch."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from choosing import propose
from torch import Tensor, float64, nn
from torch.nn.functional import unfold

import prunekit as pk
from prunekit.plugins.build import component
from prunekit.statistics import Rows
from prunekit_plugins._curvature.grams import Gram, Moments
from prunekit_plugins._selection.swaps import swapped


def error(weight: Tensor, kept: Tensor, gram: Tensor, lam: float = 0.0) -> float:
    """Of one row: ½ (w − ŵ)ᵀ (G + λI) (w − ŵ)."""
    lost = weight - weight * kept
    return float(lost @ gram @ lost + lam * lost @ lost) / 2


def published(
    weight: Tensor,
    gram: Tensor,
    kept: Tensor,
    before: Tensor,
    limit: int,
    lam: float = 0.0,
    group: Tensor | None = None,
) -> Tensor:
    """One row."""
    kept = kept.clone()
    for _ in range(limit):
        found = []
        for p, q in product(range(len(weight)), repeat=2):
            if kept[p] and before[q] and not kept[q] and (group is None or group[p] == group[q]):
                other = kept.clone()
                other[p], other[q] = False, True
                found.append((error(weight, other, gram, lam), p, q))
        if not found or min(found)[0] >= error(weight, kept, gram, lam) * (1 - 1e-12):
            break
        _, p, q = min(found)
        kept[p], kept[q] = False, True
    return kept


class Awkward(nn.Module):
    """Strides, groups, tokens, and a weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, (3, 1), stride=(2, 1), padding=(1, 0), groups=2)
        self.tied = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).tanh().flatten(2).mT
        return self.head(self.tied(self.tied(tokens).tanh()).tanh().mean(1))

    def moments(self, x: Tensor) -> dict[str, list[Tensor]]:
        """Σ x xᵀ over what enters each layer, for each group of its rows, as float64 loops have it."""
        seen = unfold(x, (3, 1), stride=(2, 1), padding=(1, 0)).unflatten(1, (2, 6))  # of a group, 2 × 3
        tokens = self.conv(x).tanh().flatten(2).mT
        inner = self.tied(tokens).tanh()
        entered = {
            "conv.weight": [seen[:, 0].mT, seen[:, 1].mT],
            "tied.weight": [torch.cat([tokens, inner])],
            "head.weight": [self.tied(inner).tanh().mean(1)],
        }
        return {
            name: [sum(row.outer(row) for row in group.reshape(-1, group.shape[-1])) for group in groups]
            for name, groups in entered.items()
        }


def awkward() -> tuple[Awkward, Tensor, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = Awkward().double()
    x = torch.randn(11, 4, 7, 2, dtype=float64) + torch.randn(11, 1, 7, 2, dtype=float64)  # correlated
    y = torch.randint(3, (11,))
    return model, x, [(x[:5], y[:5]), (x[5:10], y[5:10]), (x[10:], y[10:])]


def expected(model: Awkward, x: Tensor, start, before, limit: int, lam: float = 0.0, m: int | None = None):
    """Masks after the published swaps, from those to start with."""
    masks = {}
    with torch.no_grad():
        moments = model.moments(x)
    for name, kept in start.items():
        rows, w = kept.flatten(1), model.get_parameter(name).detach().flatten(1)
        channels = kept.shape[1]
        group = None
        if m is not None:  # of a row [channels, kernel]: m channels at one place
            place = torch.arange(rows.shape[1]).view(channels, -1)
            group = (place // place.shape[1] // m * place.shape[1] + place % place.shape[1]).flatten()
        found = []
        for i, row in enumerate(rows):
            gram = moments[name][i * len(moments[name]) // len(rows)] / len(x)
            found.append(published(w[i], gram, row, before[name].flatten(1)[i], limit, lam, group))
        masks[name] = torch.stack(found).view(kept.shape)
    return masks


@pytest.mark.parametrize("lam", [0.0, 0.5])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("limit", [1, 2, 100])
def test_swaps_are_the_published_rule(limit, sparsity, lam) -> None:
    model, x, batches = awkward()
    dense = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in model.moments(x)}
    start = pk.prune(copy.deepcopy(model), batches, "wanda", sparsity=sparsity, steps=1, lam=lam).masks
    wanted = expected(model, x, start, dense, limit, lam)
    criterion = {"name": "wanda", "swaps": limit}
    found = pk.prune(copy.deepcopy(model), batches, criterion, sparsity=sparsity, steps=1, lam=lam).masks
    assert sum(int((wanted[name] != start[name]).sum()) for name in start) > 0
    for name, mask in found.items():
        assert torch.equal(mask, wanted[name]), name
        assert torch.equal(mask.flatten(1).sum(1), start[name].flatten(1).sum(1))


def test_what_went_in_an_earlier_step_does_not_come_back() -> None:
    model, x, batches = awkward()
    first = pk.prune(copy.deepcopy(model), batches, {"name": "wanda", "swaps": 9}, sparsity=0.25, steps=1)
    masks = {name: mask.clone() for name, mask in first.masks.items()}
    begun = copy.deepcopy(model)
    pk.apply_masks(begun, masks)
    start = pk.prune(copy.deepcopy(begun), batches, "wanda", sparsity=0.6, steps=1, masks=masks).masks
    wanted = expected(begun, x, start, masks, 9)
    scheduler = {"name": "explicit", "levels": [0.25, 0.6]}
    found = pk.prune(model, batches, {"name": "wanda", "swaps": 9}, scheduler=scheduler).masks
    for name, mask in found.items():
        assert torch.equal(mask, wanted[name]), name


@pytest.mark.parametrize("limit", [1, 50])
def test_swaps_stay_within_the_groups_of_a_pattern(limit) -> None:
    model, x, batches = awkward()
    pattern = {"name": "wanda", "n": 1, "m": 2}
    dense = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in model.moments(x)}
    plain = copy.deepcopy(model)
    start = pk.prune(plain, batches, pattern, sparsity=0.5, steps=1).masks
    scores = pk.saliency(model, batches, "wanda")
    for name, mask in start.items():  # the published rule: of every two channels the larger stays
        pairs = scores[name].unflatten(1, (-1, 2))
        assert torch.equal(mask.unflatten(1, (-1, 2)), pairs == pairs.amax(2, keepdim=True))
    wanted = expected(model, x, start, dense, limit, m=2)
    found = pk.prune(model, batches, {**pattern, "swaps": limit}, sparsity=0.5, steps=1).masks
    assert any(not torch.equal(found[name], start[name]) for name in found)
    for name, mask in found.items():
        assert torch.equal(mask, wanted[name]), name
        assert (mask.unflatten(1, (-1, 2)).sum(2) == 1).all()


def test_a_pattern_is_reached_over_several_steps_with_rows_alike() -> None:
    model, _, batches = awkward()
    criterion = {"name": "wanda", "n": 1, "m": 2, "swaps": 20}
    built = component("criterion", criterion)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim == 2}  # of six inputs each
    statistics = pk.statistics(model, batches, list(built.requires))
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    for budget in (9, 14, 20, 27):
        before, masks = masks, propose(built, weights, statistics, masks, budget).masks
        weights = {name: w * masks[name] for name, w in weights.items()}
        gone = torch.cat([(~mask).sum(1) for mask in masks.values()])
        assert int(gone.sum()) == budget
        assert int(gone.max() - gone.min()) <= 1
        for name, mask in masks.items():
            assert not (mask & ~before[name]).any()
            assert (mask.unflatten(1, (-1, 2)).sum(2) >= 1).all()
    with pytest.raises(pk.SpecError, match=r"sparsity must be 0\.5"):
        pk.prune(copy.deepcopy(model), batches, criterion, sparsity=0.6, steps=1)
    found = pk.prune(model, batches, criterion, sparsity=0.5, steps=3).masks
    assert all((mask.unflatten(1, (-1, 2)).sum(2) == 1).all() for mask in found.values())


def layer(inputs: int, rows: int, dtype: torch.dtype = float64) -> tuple[Gram, Tensor, Tensor]:
    """A layer with correlated inputs, and the mask that Wanda gives it at 60 %."""
    torch.manual_seed(0)
    mix = torch.randn(inputs, inputs, dtype=dtype) * torch.linspace(1, 0.05, inputs, dtype=dtype)
    x = torch.randn(4 * inputs, inputs, dtype=dtype) @ mix
    matrix, weight = x.T @ x / len(x), torch.randn(rows, inputs, dtype=dtype)
    scores = weight.abs() * matrix.diagonal().sqrt()
    kept = torch.zeros_like(weight, dtype=torch.bool)
    kept.scatter_(1, scores.topk(inputs - round(0.6 * inputs)).indices, True)
    return Gram(Moments(matrix.unsqueeze(0)), Rows.plain(weight.shape)), weight, kept


def test_each_swap_lowers_the_error_until_none_does() -> None:
    gram, weight, kept = layer(24, 7)
    matrix, dense = gram.moments.matrix[0], torch.ones_like(kept)
    before, rows = kept, range(len(weight))
    for limit in range(1, 40):
        after = swapped(gram, weight, dense, kept, limit)
        for i in rows:
            assert int((after[i] != before[i]).sum()) in (0, 2)
            if not torch.equal(after[i], before[i]):
                assert error(weight[i], after[i], matrix) < error(weight[i], before[i], matrix)
        if torch.equal(after, before):
            break
        before = after
    assert limit < 39
    for i in rows:
        assert torch.equal(published(weight[i], matrix, before[i], dense[i], 1), before[i])


@pytest.mark.parametrize("m", [None, 4])
def test_some_rows_at_a_time_give_the_same(m) -> None:
    gram, weight, kept = layer(24, 10)
    if m is not None:
        kept = torch.rand_like(weight).view(10, 6, 4).argsort(-1).ge(2).view(10, 24)
    dense = torch.ones_like(kept)
    whole = swapped(gram, weight, dense, kept, 50, m=m)
    assert not torch.equal(whole, kept)
    for memory in (0, 20_000):
        assert torch.equal(swapped(gram, weight, dense, kept, 50, m=m, memory=memory), whole)


def test_rows_may_differ_in_how_much_is_gone_and_some_weights_are_spared() -> None:
    gram, weight, kept = layer(24, 8)
    matrix, dense = gram.moments.matrix[0], torch.ones_like(kept)
    kept[0], kept[1] = True, False  # nothing to swap
    kept[2, :20] = False
    spared = torch.rand_like(weight) < 0.3
    found = swapped(gram, weight, dense, kept, 30, spared=spared)
    assert torch.equal(found.sum(1), kept.sum(1))
    assert torch.equal(found[:2], kept[:2])
    assert not (kept & spared & ~found).any()
    free = swapped(gram, weight, dense, kept, 30)
    assert not torch.equal(free, found)
    for i in range(8):
        assert torch.equal(free[i], published(weight[i], matrix, kept[i], dense[i], 30))


def test_single_precision_ends_with_as_little_error() -> None:
    gram, weight, kept = layer(64, 32)
    single = Gram(Moments(gram.moments.matrix.float()), gram.rows)
    dense = torch.ones_like(kept)
    one, other = (swapped(g, w, dense, kept, 500) for g, w in ((gram, weight), (single, weight.float())))
    errors = [gram.error(weight * ~mask) for mask in (kept, one, other)]
    assert errors[2] == pytest.approx(errors[1], rel=1e-3)
    assert errors[1] < 0.75 * errors[0]


@pytest.mark.parametrize("update", [True, "cg"])
def test_survivors_take_values_for_the_masks_after_the_swaps(update) -> None:
    """Those that ``magnitude`` with the same update gives to a network pruned to these masks."""
    model, x, batches = awkward()
    plain = pk.prune(copy.deepcopy(model), batches, {"name": "wanda", "swaps": 50}, sparsity=0.5, steps=1)
    found = copy.deepcopy(model)
    pruning = pk.prune(
        found, batches, {"name": "wanda", "swaps": 50, "update": update}, sparsity=0.5, steps=1
    )
    with torch.no_grad():
        moments = model.moments(x)
    for name, mask in plain.masks.items():
        assert torch.equal(pruning.masks[name], mask)
        w, fitted, kept = (
            t.detach().flatten(1) for t in (model.get_parameter(name), found.get_parameter(name), mask)
        )
        for i, row in enumerate(kept):
            gram = moments[name][i * len(moments[name]) // len(kept)]
            change, least = fitted[i] - w[i], torch.zeros_like(w[i])
            least[row] = torch.linalg.lstsq(gram[row][:, row], (gram @ w[i])[row]).solution
            none, best = error(w[i], row, gram), float((least - w[i]) @ gram @ (least - w[i])) / 2
            reached = float(change @ gram @ change) / 2
            assert best * (1 - 1e-6) <= reached <= none
            if update is True:
                assert reached == pytest.approx(best, rel=1e-4, abs=1e-9 * none)


def test_swaps_that_a_selector_might_not_want_are_refused() -> None:
    model, _, batches = awkward()
    with pytest.raises(pk.SpecError, match="swaps has no meaning with selection saliency"):
        pk.prune(
            model, batches, {"name": "wanda", "swaps": 3, "selection": "saliency"}, sparsity=0.5, steps=1
        )
