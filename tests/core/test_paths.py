"""Paths through the weights that are kept, against Jacobians that change when a weight goes, on awkward networks."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import prunekit as pk
from prunekit.statistics.paths import paths
from prunekit.testing.guard import untouched

KNOWN = [
    "linear", "stride_that_leaves_a_rest", "padding_reflect", "groups", "dilation", "transposed", "transposed_1d",
    "conv_1d", "conv_3d", "instance_norm", "residual", "tied_linear", "used_twice", "sequence_first", "folded",
    "one_by_one", "unused",
]  # fmt: skip


def jacobian(model: nn.Module, x: Any) -> Tensor:
    """Derivatives of all outputs in all inputs."""
    inputs = tuple(x.values()) if isinstance(x, dict) else x if isinstance(x, tuple) else (x,)
    keys = list(x) if isinstance(x, dict) else None

    def run(*values: Tensor) -> Tensor:
        return model(**dict(zip(keys, values, strict=True))) if keys else model(*values)

    parts = torch.autograd.functional.jacobian(run, inputs)
    return torch.cat([part.flatten() for part in parts])


def masked(network: Any, names: list[str], share: float, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {n: torch.rand(network.model.get_parameter(n).shape, generator=draw) > share for n in names}


@pytest.mark.parametrize("share", [0.3, 0.75])
@pytest.mark.parametrize("name", KNOWN)
def test_a_kept_weight_is_on_a_path_just_where_the_jacobian_depends_on_it(
    name: str, share: float, build: Any, naive: SimpleNamespace
) -> None:
    network = build(name)
    model, names = network.model.eval(), naive.prunable(network.model)
    masks = masked(network, names, share, len(name))
    pk.apply_masks(model, masks)
    with untouched([], model, []):
        found = paths(model, network.x, masks)
    whole = jacobian(model, network.x)
    for key in names:
        for index in masks[key].flatten().nonzero().flatten().tolist():
            other = copy.deepcopy(model)
            with torch.no_grad():
                other.get_parameter(key).view(-1)[index] += 0.3
            depends = bool((jacobian(other, network.x) - whole).abs().max() > 1e-12)
            assert bool(found.through[key].view(-1)[index]) == depends, (key, index)


def test_units_are_fed_and_heard_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    masks = {
        "0.weight": torch.tensor([[1, 0], [0, 0], [1, 1], [0, 1]]).bool(),  # unit 1 gets nothing
        "2.weight": torch.tensor(
            [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]]
        ).bool(),  # nobody listens to unit 3
        "4.weight": torch.tensor([[1, 1, 0], [0, 1, 0]]).bool(),  # nor to unit 2 of the second layer
    }
    found = paths(model, torch.zeros(5, 2), masks)
    assert found.fed["0.weight"].tolist() == [True, False, True, True]
    assert found.heard["0.weight"].tolist() == [True, True, False, False]
    assert found.fed["2.weight"].tolist() == [True, False, True]
    assert found.heard["2.weight"].tolist() == [True, True, False]
    on_path = {name: (found.through[name] & mask).long().tolist() for name, mask in masks.items()}
    assert on_path == {
        "0.weight": [[1, 0], [0, 0], [0, 0], [0, 0]],
        "2.weight": [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        "4.weight": [[1, 0, 0], [0, 0, 0]],
    }


def test_a_layer_that_is_gone_ends_all_paths_but_those_around_it() -> None:
    class Around(nn.Module):
        def __init__(self, around: bool) -> None:
            super().__init__()
            self.inner, self.head, self.around = nn.Linear(4, 4), nn.Linear(4, 3), around

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.inner(x).relu() if self.around else self.inner(x).relu())

    for around in (True, False):
        model = Around(around)
        masks = {"inner.weight": torch.zeros(4, 4).bool(), "head.weight": torch.ones(3, 4).bool()}
        found = paths(model, torch.randn(2, 4), masks)
        assert bool(found.through["head.weight"].all()) is around
        assert bool(found.through["head.weight"].any()) is around


def test_deep_networks_neither_overflow_nor_underflow() -> None:
    model = nn.Sequential(*[layer for _ in range(400) for layer in (nn.Linear(8, 8), nn.Tanh())])
    masks = {name: torch.ones_like(p).bool() for name, p in model.named_parameters() if p.ndim > 1}
    assert all(bool(t.all()) for t in paths(model, torch.randn(1, 8), masks).through.values())


class Gated(nn.Module):
    """Something whose paths nobody knows."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.layer, self.head = what, nn.Linear(4, 4), nn.Linear(4, 3)
        if what == "attention":
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        if what == "weight norm":
            self.layer = parametrizations.weight_norm(self.layer)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        if self.what == "a product of its own":
            h = torch.einsum("ni,ij->nj", h, self.layer.weight)
        elif self.what == "values decide":
            h = h if h.sum() > 0 else -h
        elif self.what == "attention":
            h = self.attention(h[:, None], h[:, None], h[:, None], need_weights=False)[0][:, 0]
        elif self.what == "a sort":
            h = h.sort(1).values
        return self.head(h)


@pytest.mark.parametrize(
    "what", ["a product of its own", "values decide", "attention", "a sort", "weight norm"]
)
def test_what_is_not_known_is_refused_and_not_guessed(what: str) -> None:
    model = Gated(what)
    masks = {"head.weight": torch.ones(3, 4).bool()}
    if what != "weight norm":
        masks["layer.weight"] = torch.ones(4, 4).bool()
    with pytest.raises(pk.UnsupportedError, match="paths of the network are not known"):
        paths(model, torch.randn(3, 4), masks)
