"""Deleting single weights, many in one pass: against a copy of the network from which each has been deleted."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from traits import EXAMPLES, TRAITS, WIDTH, made

import prunekit as pk
from prunekit.observing.moment import Moment, Surroundings
from prunekit.plugins.build import as_loss, estimators
from prunekit.statistics import deletion
from prunekit.testing.guard import untouched


def moment(
    model: nn.Module, names: list[str], loss: Any = "cross_entropy", memory: int | None = None
) -> Moment:
    masks = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in names}
    return Moment("end", Surroundings(model, as_loss(loss), estimators, memory=memory), masks)


def call(model: nn.Module, x: Any) -> Tensor:
    if isinstance(x, dict):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


def one_by_one(model: nn.Module, x: Any, y: Tensor, names: list[str], loss: Any = F.cross_entropy) -> Any:
    """By a copy of the network for each weight."""

    def measured(name: str | None = None, index: int = 0) -> float:
        other = copy.deepcopy(model).eval()
        if name is not None:
            with torch.no_grad():
                other.get_parameter(name).view(-1)[index] = 0.0
        return float(loss(call(other, copy.deepcopy(x)), y).detach())

    whole = measured()
    sizes = {name: model.get_parameter(name).numel() for name in names}
    return {name: torch.tensor([measured(name, i) - whole for i in range(n)]) for name, n in sizes.items()}


def check(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == torch.float64
        torch.testing.assert_close(found[name], values.double(), rtol=1e-7, atol=1e-12)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """By which way the weights of each parameter were deleted."""
    taken: dict[str, str] = {}
    every = deletion._Slice._all

    def noted(self: Any, way: Any, name: str, *rest: Any) -> Any:
        found = every(self, way, name, *rest)
        if found is not None:
            taken[name] = way.__name__.removeprefix("_")
        return found

    monkeypatch.setattr(deletion._Slice, "_all", noted)
    return taken


def test_deletions_change_the_loss_as_deleting_one_by_one_does(network: Any, naive: SimpleNamespace) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        names = naive.prunable(network.model) or [name for name, _ in network.model.named_parameters()]
        expected = one_by_one(network.model, network.x, network.y, names)
        with untouched([network.y], network.model, []):
            found = moment(network.model, names).deletions(data=network.batches())
    finally:
        torch.set_default_dtype(torch.float32)
    check(found, expected)


BY_UNIT = {
    "stride_that_leaves_a_rest": True, "groups": True, "dilation": True, "batch_norm": True,
    "padding_same_and_uneven": True, "residual": True, "tied_linear": True, "used_twice": True,
    "tokens_and_layer_norm": True, "sequence_first": True, "folded": True, "in_place_relu": True, "mixture": True,
    "transposed": False, "sometimes_used_twice": False, "custom_parameters": False,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", BY_UNIT)
def test_a_layers_weights_are_deleted_by_the_unit_that_they_reach_and_others_in_a_stack(
    name: str, build: Any, naive: SimpleNamespace, ways: dict[str, str]
) -> None:
    network = build(name)
    names = naive.prunable(network.model) or [name for name, _ in network.model.named_parameters()]
    moment(network.model, names).deletions(data=network.batches())
    assert ways[names[0]] == ("by_unit" if BY_UNIT[name] else "stacked")


@pytest.mark.parametrize(
    ("between", "way"),
    [
        (nn.Tanh(), "by_chain"),
        (nn.ReLU(), "by_chain"),
        (nn.ReLU(inplace=True), "by_unit"),
        (nn.Sequential(nn.LeakyReLU(0.2), nn.GELU()), "by_chain"),
        (nn.Identity(), "by_chain"),
        (nn.Dropout(), "by_unit"),
        (nn.Softmax(1), "by_unit"),
        (nn.LayerNorm(6), "by_unit"),
        (nn.BatchNorm1d(6), "by_unit"),
    ],
    ids=str,
)
def test_what_is_a_chain_needs_no_network(between: nn.Module, way: str, ways: dict[str, str]) -> None:
    model = nn.Sequential(
        nn.Linear(4, 6), between, nn.Linear(6, 6, bias=False), between, nn.Linear(6, 3), nn.Tanh()
    ).double()  # fmt: skip
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randint(3, (5,))
    names = ["0.weight", "2.weight", "4.weight"]
    torch.set_default_dtype(torch.float64)
    try:
        check(moment(model, names).deletions(data=[(x, y)]), one_by_one(model, x, y, names))
    finally:
        torch.set_default_dtype(torch.float32)
    assert ways == {"0.weight": way, "2.weight": way, "4.weight": "by_unit"}


def test_what_follows_a_layer_in_two_ways_is_no_chain(ways: dict[str, str]) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.last(h.tanh()) + h

    model = Around().double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randint(3, (5,))
    names = ["first.weight", "last.weight"]
    torch.set_default_dtype(torch.float64)
    try:
        check(moment(model, names).deletions(data=[(x, y)]), one_by_one(model, x, y, names))
    finally:
        torch.set_default_dtype(torch.float32)
    assert ways["first.weight"] == "by_unit"


@pytest.mark.filterwarnings("ignore:hooks on gradients")
@pytest.mark.parametrize("trait", sorted(set(TRAITS) - {"a layer of width zero", "an unused layer"}))
def test_networks_with_awkward_traits_are_right_or_refused(trait: str) -> None:
    model = made(trait)
    x, y = torch.randn(EXAMPLES, WIDTH, dtype=torch.float64), torch.randint(3, (EXAMPLES,))
    names = [
        n for n, p in model.named_parameters() if n.endswith("last.weight") or n.endswith("first.weight")
    ]
    before, given = copy.deepcopy(model.state_dict()), x.clone()
    where = moment(model, names)
    try:
        found = where.deletions(data=[(x, y)])
    finally:
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert torch.equal(x, given)
    whole = where.loss(data=[(x, y)])
    for name, changes in found.items():
        for index in (0, len(changes) // 2, len(changes) - 1):
            weights = where.weights()
            weights[name].view(-1)[index] = 0.0
            expected = where.loss(weights, [(x, y)]) - whole
            assert float(changes[index]) == pytest.approx(expected, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("memory", [1, 20_000, 1 << 30])
@pytest.mark.parametrize(
    "name", ["linear", "groups", "in_place_relu", "tied_linear", "used_twice", "batch_norm"]
)
def test_how_many_are_deleted_together_does_not_matter(name: str, memory: int, build: Any) -> None:
    network = build(name)
    names = [name for name, p in network.model.named_parameters() if p.ndim > 1]
    expected = moment(network.model, names).deletions(data=network.batches())
    found = moment(network.model, names, memory=memory).deletions(data=network.batches())
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("loss", "truth"),
    [
        ("mse", F.mse_loss),
        ("bce_with_logits", F.binary_cross_entropy_with_logits),
        (nn.HuberLoss(), F.huber_loss),
        ({"name": "cross_entropy", "label_smoothing": 0.1}, lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1)),
        ({"name": "cross_entropy", "weight": [1.0, 2.0, 3.0]}, None),
    ],
)  # fmt: skip
def test_every_loss_is_measured(loss: Any, truth: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.rand(9, 3, dtype=torch.float64)
    if truth is None:
        y, weight = torch.randint(3, (9,)), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

        def truth(z: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(z, y, weight)

    names = ["0.weight", "2.weight"]
    found = moment(model, names, loss).deletions(data=[(x[:7], y[:7]), (x[7:], y[7:])])
    whole = float(truth(model(x), y).detach())
    for name in names:
        for index in range(found[name].numel()):
            other = copy.deepcopy(model)
            with torch.no_grad():
                other.get_parameter(name).view(-1)[index] = 0.0
            expected = float(truth(other(x), y).detach()) - whole
            assert float(found[name][index]) == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_chosen_weights_at_chosen_weights_and_single_precision() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    exact = copy.deepcopy(model).double()
    x, y = torch.randn(40, 6), torch.randint(3, (40,))
    where = moment(model, ["0.weight", "2.weight"])
    weights = {name: 2 * value for name, value in where.weights().items()}
    places = {"2.weight": torch.tensor([3, 1])}
    found = where.deletions(places, weights, [(x, y)])
    assert {name: len(values) for name, values in found.items()} == {"2.weight": 2}
    twin = moment(exact, ["0.weight", "2.weight"])
    doubled = {name: value.double() for name, value in weights.items()}
    expected = twin.deletions(places, doubled, [(x.double(), y)])
    torch.testing.assert_close(found["2.weight"], expected["2.weight"], rtol=1e-3, atol=1e-7)


def test_without_examples_there_is_nothing_to_measure() -> None:
    with pytest.raises(pk.DataError, match="nothing to measure"):
        moment(nn.Linear(2, 3), ["weight"]).deletions(data=[])
