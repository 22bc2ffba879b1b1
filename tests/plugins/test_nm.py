"""N:M sparsity along the input dimension."""

from __future__ import annotations

import pytest
import torch
from choosing import choose
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunekit as pk
from prunekit.masks.weights import Layer
from prunekit.plugins.build import component
from prunekit.plugins.host import default_manager


def groups(weight: Tensor, m: int, axis: int = 1) -> Tensor:
    return weight.movedim(axis, -1).reshape(-1, m)


@settings(max_examples=50, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2)), min_size=1, max_size=3
    ),
    pattern=st.sampled_from([(2, 4), (1, 4), (3, 4), (1, 2), (2, 3)]),
    data=st.data(),
)
def test_every_step_takes_the_smallest_that_their_groups_let_go(shapes, pattern, data) -> None:
    n, m = pattern
    values = st.sampled_from([0.0, 1.0, 2.0, 0.5])
    saliency = {}
    for i, (out, inputs, kernel) in enumerate(shapes):
        size = out * inputs * m * kernel
        drawn = data.draw(st.lists(values, min_size=size, max_size=size))
        saliency[f"layer{9 - i}"] = torch.tensor(drawn).view(out, inputs * m, kernel)
    masks = {name: torch.ones_like(s, dtype=torch.bool) for name, s in saliency.items()}
    total = sum(s.numel() for s in saliency.values()) // m * (m - n)
    budgets = sorted({*data.draw(st.lists(st.integers(0, total), max_size=3)), total})
    selector = component("selector", {"name": "nm", "n": n, "m": m})
    selector.check([Layer(name, tuple(s.shape)) for name, s in saliency.items()], budgets)
    for budget in budgets:
        # The naive way: all kept weights in order, each taken if its group has one to give.
        expected = {name: mask.clone() for name, mask in masks.items()}
        order = sorted(
            (float(s.flatten()[i]), position, i, name)
            for position, (name, s) in enumerate(saliency.items())
            for i in range(s.numel())
            if masks[name].flatten()[i]
        )
        count = sum(int((~mask).sum()) for mask in masks.values())
        for _, _, i, name in order:
            if count == budget:
                break
            index = torch.unravel_index(torch.tensor(i), expected[name].shape)
            first = int(index[1]) // m * m
            if int((~expected[name][index[0], first : first + m, index[2]]).sum()) < m - n:
                expected[name][index] = False
                count += 1
        masks = choose(selector, saliency, masks, budget)
        assert all(torch.equal(masks[name], expected[name]) for name in masks)
    assert all((groups(mask, m).sum(1) == n).all() for mask in masks.values())


@pytest.mark.parametrize("criterion", ["magnitude", "lm", "qm"])
def test_a_pruned_network_has_the_pattern_in_every_layer(criterion) -> None:
    model = nn.Sequential(
        nn.ConvTranspose2d(8, 4, 3),
        nn.Tanh(),
        nn.Conv2d(4, 8, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8 * 16, 3),
    )
    batch = torch.randn(6, 8, 4, 4), torch.randint(3, (6,))
    pruning = pk.prune(model, [batch], criterion, sparsity=0.5, steps=3, selector="nm")
    assert pruning.steps[-1].sparsity == 0.5
    for name, axis in (("0.weight", 0), ("2.weight", 1), ("5.weight", 1)):
        assert (groups(model.get_parameter(name) != 0, 4, axis).sum(1) == 2).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"sparsity": 0.6},
            r"2:4 prunes 12 of 24 weights, but the schedule ends at 14; sparsity must be 0.5",
        ),
        ({"sparsity": 0.4}, r"ends at 10"),
        (
            {"sparsity": 0.5, "selector": {"name": "nm", "n": 1, "m": 3}},
            r"0.weight has 4 inputs.*multiple of 3; exclude",
        ),
        ({"sparsity": 0.5, "prunable": {"biases": True}}, r"0.bias has no input dimension"),
        ({"sparsity": 0.5, "selector": {"name": "nm", "n": 4}}, r"n must be less than m"),
    ],
)
def test_what_contradicts_the_pattern_is_refused_before_anything_changes(arguments, message) -> None:
    model = nn.Linear(4, 6)
    network = nn.Sequential(model)
    before = model.weight.detach().clone()
    batch = torch.randn(6, 4), torch.randint(6, (6,))
    with pytest.raises(pk.SpecError, match=message):
        pk.prune(network, [batch], "magnitude", **{"selector": "nm", "scheduler": "one_shot", **arguments})
    assert torch.equal(model.weight, before)


RANKING = {
    **{n: {"selection": "saliency"} for n in ("obs", "obs_gradient", "obs_rows", "obs_block", "obs_kfac")},
    **{n: {"selection": "saliency"} for n in ("obc", "sparsegpt", "combinatorial", "wanda")},
}
"""Criteria that choose the masks themselves unless they are asked to rank."""


@pytest.mark.parametrize("name", default_manager().names("criterion"))
def test_every_criterion_keeps_to_the_pattern(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        x, y = torch.randn(30, 8, dtype=torch.float64), torch.randint(4, (30,))

    own = {"n": 2, "m": 4} if name == "alps" else RANKING.get(name, {})
    selector = "global" if name == "alps" else "nm"
    pruning = pk.prune(model, [(x, y)], {"name": name, **own}, sparsity=0.5, steps=2, selector=selector)

    for key, mask in pruning.masks.items():
        assert (mask.reshape(-1, 4).sum(1) == 2).all()
        assert not model.get_parameter(key)[~mask].any()
