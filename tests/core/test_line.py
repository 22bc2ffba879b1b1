"""Derivatives of the loss along a line, against autograd and differences in float64, on awkward networks."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import prunekit as pk
from prunekit.observing.moment import Moment, Surroundings
from prunekit.plugins.build import as_loss, estimators

STEP = 1e-4


def moment(
    model: nn.Module, names: list[str], loss: Any = "cross_entropy", memory: int | None = None
) -> Moment:
    masks = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in names}
    return Moment("end", Surroundings(model, as_loss(loss), estimators, memory=memory), masks)


def direction(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    return {name: 0.5 * torch.randn_like(model.get_parameter(name)).detach() for name in names}


def call(model: nn.Module, x: Any) -> Tensor:
    if isinstance(x, dict):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


class Line:
    """The loss along a line, by a copy of the model whose weights are set anew for each place."""

    def __init__(self, network: Any, delta: dict[str, Tensor]) -> None:
        self.network, self.delta = network, delta
        self.model = copy.deepcopy(network.model).eval()

    def second(self, t: float) -> tuple[float, float, float]:
        """The loss at t, and its first two derivatives there."""
        with torch.no_grad():
            for name, change in self.delta.items():
                self.model.get_parameter(name).copy_(self.network.model.get_parameter(name) + t * change)
        parameters = [self.model.get_parameter(name) for name in self.delta]
        with sdpa_kernel(SDPBackend.MATH):
            loss = F.cross_entropy(call(self.model, self.network.x), self.network.y)
        slopes = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        first = sum(
            (
                (g.to_dense() * d).sum()
                for g, d in zip(slopes, self.delta.values(), strict=True)
                if g is not None
            ),
            start=torch.zeros(()),
        )
        curved = first.requires_grad and torch.autograd.grad(first, parameters, allow_unused=True)
        pairs = zip(curved or (), self.delta.values(), strict=False)
        return (
            float(loss.detach()),
            float(first.detach()),
            sum(float((h * d).sum()) for h, d in pairs if h is not None),
        )


def test_derivatives_along_a_line_are_autograds_and_differences_of_them(
    network: Any, naive: SimpleNamespace
) -> None:
    names = naive.prunable(network.model) or [name for name, _ in network.model.named_parameters()]
    delta = direction(network.model, names)
    line = Line(network, delta)
    here, ahead, behind = (line.second(t)[2] for t in (0.0, STEP, -STEP))
    expected = [*line.second(0.0), (ahead - behind) / (2 * STEP), (ahead - 2 * here + behind) / STEP**2]
    found = moment(network.model, names).along(delta, 4, data=network.batches()).derivatives
    assert found[:3] == pytest.approx(expected[:3], rel=1e-9, abs=1e-12)
    assert found[3:] == pytest.approx(expected[3:], rel=1e-3, abs=1e-4)


def test_the_ggn_along_lines_is_that_of_products(network: Any, naive: SimpleNamespace) -> None:
    names = naive.prunable(network.model) or [name for name, _ in network.model.named_parameters()]
    lines = [direction(network.model, names), {names[0]: direction(network.model, names)[names[0]]}]
    where, data = moment(network.model, names), network.batches()
    whole = [{name: line.get(name, torch.zeros_like(lines[0][name])) for name in names} for line in lines]
    products = [where.product("ggn", line, data=data) for line in whole]
    expected = [
        [sum(float((one[n] * product[n]).sum()) for n in names) for product in products] for one in whole
    ]
    found = where.gram(lines, data=data)
    for row, its_row in zip(found, expected, strict=True):
        assert row == pytest.approx(its_row, rel=1e-9, abs=1e-12)
    assert where.along(lines[0], 1, data=data).ggn == pytest.approx(expected[0][0], rel=1e-9, abs=1e-12)


class Rounded(nn.Module):
    """Sorts its values by a function that jets do not know."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.special.i1(self.layer(x)))


class Straight(torch.autograd.Function):
    """A step forwards, the identity backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.tanh(3 * x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class StraightThrough(Rounded):
    """Its derivative is what its author says, not that of what it computes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Straight.apply(self.layer(x)))


class Frozen(Rounded):
    """A part that is held constant in derivatives."""

    def forward(self, x: Tensor) -> Tensor:
        inside = self.layer(x)
        with torch.no_grad():
            gate = inside.sigmoid()
        return self.head(inside * gate)


@pytest.mark.parametrize("kind", [Rounded, StraightThrough, Frozen])
def test_where_jets_have_no_rule_or_are_wrong_derivatives_go_backwards_to_the_second_order(
    kind: type[nn.Module],
) -> None:
    model = kind().double()
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randint(3, (7,))
    names = ["layer.weight", "head.weight"]
    delta = direction(model, names)
    parameters = [model.get_parameter(name) for name in names]
    loss = F.cross_entropy(model(x), y)
    slopes = torch.autograd.grad(loss, parameters, create_graph=True)
    first = sum((g * d).sum() for g, d in zip(slopes, delta.values(), strict=True))
    assert isinstance(first, Tensor)
    curved = torch.autograd.grad(first, parameters)
    second = sum((h * d).sum() for h, d in zip(curved, delta.values(), strict=True))
    where, data = moment(model, names), [(x[:5], y[:5]), (x[5:], y[5:])]
    found = where.along(delta, 2, data=data)
    assert found.derivatives == pytest.approx([float(v.detach()) for v in (loss, first, second)], rel=1e-9)
    product = where.product("ggn", delta, data=data)
    assert found.ggn == pytest.approx(sum(float((product[n] * delta[n]).sum()) for n in names), rel=1e-9)
    with pytest.raises(pk.UnsupportedError, match="no derivatives of order 4 along a line"):
        where.along(delta, 4, data=data)


def test_a_polynomial_of_the_weights_has_its_own_coefficients() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    model = Product().double()
    with torch.no_grad():
        model.first.weight.fill_(2.0)
        model.second.weight.fill_(3.0)
    data = [(torch.ones(1, 1, dtype=torch.float64), torch.tensor([[5.0]], dtype=torch.float64))]
    line = {"first.weight": torch.full((1, 1), -2.0), "second.weight": torch.full((1, 1), 1.0)}
    # ((2 − 2t)(3 + t) − 5)² = (1 − 4t − 2t²)² = 1 − 8t + 12t² + 16t³ + 4t⁴
    found = moment(model, list(line), "mse").along(line, 4, data=data)
    assert found.derivatives == pytest.approx([1.0, -8.0, 24.0, 96.0, 96.0], rel=1e-12)
    assert found.ggn == pytest.approx(32.0, rel=1e-12)  # 2·(−4)²


def test_how_batches_are_cut_makes_no_difference_to_derivatives(build: Any) -> None:
    network = build("batch_norm")
    names = ["0.weight"]
    delta = direction(network.model, names)
    whole = moment(network.model, names).along(delta, 4, data=network.batches(7))
    cut = moment(network.model, names, memory=40_000).along(delta, 4, data=network.batches(4, 3))
    assert cut.derivatives == pytest.approx(whole.derivatives, rel=1e-10)
    assert cut.ggn == pytest.approx(whole.ggn, rel=1e-10)
