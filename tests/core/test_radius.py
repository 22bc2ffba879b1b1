"""The Taylor radius: derivatives along a step, what they leave, and how far they reach."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import factorial
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit_plugins._landscape.radius import radius, remainder


class Looking(pk.Scheduler):
    """Two steps, and a look at each before it is applied."""

    name = "looking"
    needs: ClassVar[frozenset[str]] = frozenset({"radius"})

    def levels(self) -> Sequence[float]:
        return [0.3, 0.6]

    def accept(self, attempt: pk.Attempt, history: Sequence[pk.Attempt]) -> bool:
        return True


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)).double().eval()


def data() -> list[tuple[Tensor, Tensor]]:
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randint(3, (20,))
    return [(x[:13], y[:13]), (x[13:], y[13:])]


def loss(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return float(nn.functional.cross_entropy(model(x), y).detach())


@pytest.mark.parametrize("criterion", ["qm", "magnitude", "obs_rows"])
def test_a_proposal_is_measured_along_its_own_step_before_it_is_applied(criterion: str) -> None:
    model, batches = network(), data()
    start = copy.deepcopy(model)
    found = pk.prune(model, batches, criterion, scheduler=Looking())
    first = found.attempts[0]
    seen = first.measured["radius"]
    again = copy.deepcopy(start)
    pk.prune(again, batches, criterion, 0.3, 1, scheduler="one_shot")

    def along(t: float) -> float:
        between = copy.deepcopy(start)
        for p, a, b in zip(between.parameters(), start.parameters(), again.parameters(), strict=True):
            p.data.copy_(a.data + t * (b.data - a.data))
        return loss(between, batches)

    places = np.linspace(-0.04, 0.04, 9)
    fitted = np.polynomial.Polynomial.fit(places, [along(t) for t in places], 8).convert().coef
    for order in range(1, 5):
        expected = fitted[order] * factorial(order)
        assert seen[f"derivative_{order}"] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    derivatives = [along(0.0), *(seen[f"derivative_{k}"] for k in range(1, 5))]
    for order in (1, 2):
        assert seen[f"remainder_{order}"] == pytest.approx(remainder(derivatives, order, first.delta_loss))
        assert seen[f"radius_{order}"] == radius(derivatives, order, 0.25, 0.0, 4.0)
    assert seen["radius_1"] > 0


@pytest.mark.parametrize("seed", range(20))
def test_the_radius_is_where_a_scan_first_finds_the_tolerance_broken(seed: int) -> None:
    draw = np.random.default_rng(seed)
    derivatives = draw.normal(size=5).tolist()
    relative, absolute = [(0.25, 0.0), (0.0, 0.05), (0.1, 0.02)][seed % 3]
    times = np.linspace(0, 4, 400_001)[1:]
    for order in (1, 2):
        terms = [d * times**k / factorial(k) for k, d in enumerate(derivatives)]
        model, rest = sum(terms[1 : order + 1]), sum(terms[order + 1 :])
        broken = np.abs(rest) > absolute + relative * np.abs(model)
        expected = times[broken.argmax()] if broken.any() else 4.0
        assert radius(derivatives, order, relative, absolute, 4.0) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(
    ("derivatives", "relative", "absolute", "expected"),
    [
        ([3.0, 1.0, 0.0, 0.0, 0.0], 0.1, 0.0, 4.0),  # a line holds everywhere
        (
            [3.0, 0.0, 1.0, 0.0, 0.0],
            0.1,
            0.0,
            0.0,
        ),  # a model that says nothing is nowhere within a part of it
        ([3.0, 1.0, 2.0, 0.0, 0.0], 0.25, 0.0, 0.25),  # t² = t/4
        ([3.0, -1.0, 2.0, 0.0, 0.0], 0.0, 0.04, 0.2),  # t² = 0.04
    ],
)
def test_a_radius_that_can_be_worked_out_by_hand(
    derivatives: list[float], relative: float, absolute: float, expected: float
) -> None:
    assert radius(derivatives, 1, relative, absolute, 4.0) == pytest.approx(expected)


def test_where_higher_derivatives_cannot_be_had_the_radius_is_not_measured() -> None:
    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.special.i1(self.layer(x)))

    found = pk.prune(Unknown().double(), data(), "qm", scheduler=Looking())
    for attempt in found.attempts:
        seen = attempt.measured["radius"]
        assert set(seen) == {"derivative_1", "derivative_2", "remainder_1", "remainder_2"}
        expected = attempt.delta_loss - seen["derivative_1"] - seen["derivative_2"] / 2
        assert seen["remainder_2"] == pytest.approx(expected)
