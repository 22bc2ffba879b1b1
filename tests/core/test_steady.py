"""Many products in a row: what is kept from one to the next changes none of them, and does not outlive them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, float64, nn

import prunekit as pk

KINDS = ["ggn", "hessian", "empirical_fisher"]
PASSES: list[weakref.ref[Tensor]] = []
"""What the network below has computed in each of its passes; outside it, since a network begins each from one state."""


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x)).tanh()
        PASSES.append(weakref.ref(hidden))
        return self.last(hidden)


@pytest.fixture
def model() -> nn.Module:
    PASSES.clear()
    return Counted().double()


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(n, 4, dtype=float64), torch.randint(3, (n,))) for n in (7, 4)]


def vectors(operator: Any, count: int = 3) -> list[Tensor]:
    return [torch.randn(operator.shape[0], dtype=float64) for _ in range(count)]


def passes(task: Callable[[], object]) -> int:
    before = len(PASSES)
    task()
    return len(PASSES) - before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["batch_norm", "used_twice", "attention", "mixture", "linear"])
@pytest.mark.parametrize("memory", [None, 60_000, 1], ids=["all is kept", "some", "nothing"])
def test_products_are_the_same_bit_for_bit(build: Any, kind: str, name: str, memory: int | None) -> None:
    network = build(name)
    operator = pk.operator(network.model, network.batches(4, 2, 1), kind, parameters="all", memory=memory)
    some = vectors(operator)
    expected = [operator @ vector for vector in some]
    with operator.steady(), operator.steady():
        found = [operator @ vector for vector in some]
    assert all(map(torch.equal, found, expected))
    assert all(map(torch.equal, [operator @ vector for vector in some], expected))


@pytest.mark.parametrize(("memory", "again"), [(None, 0), (10_000, 1), (1, 11)])
def test_examples_that_fit_go_through_the_network_once(
    model: nn.Module, batches: Any, memory: int | None, again: int
) -> None:
    operator = pk.operator(model, batches, "hessian", parameters="all", memory=memory)
    first, second, third = vectors(operator)
    _ = operator @ first
    assert passes(lambda: operator @ first) > 0
    with operator.steady():
        _ = operator @ first
        assert [passes(lambda v=v: operator @ v) for v in (second, third)] == [again, again]
    assert passes(lambda: operator @ first) > 0


def test_nothing_is_kept_afterwards_and_the_model_is_as_it_was_also_on_error(
    model: nn.Module, batches: Any
) -> None:
    operator = pk.operator(model, batches, "hessian")
    model.first.weight.requires_grad_(False)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    random = torch.get_rng_state()

    def untouched() -> bool:
        gc.collect()
        return (
            all(module.training for module in model.modules())
            and [n for n, p in model.named_parameters() if not p.requires_grad] == ["first.weight"]
            and all(p.grad is None for p in model.parameters())
            and all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
            and torch.equal(torch.get_rng_state(), random)
            and not any(ref() is not None for ref in PASSES)
        )

    vector = torch.ones(operator.shape[0], dtype=float64)
    with operator.steady():
        _ = operator @ vector
        assert any(ref() is not None for ref in PASSES)
    assert untouched()

    def stopped() -> None:
        with operator.steady():
            _ = operator @ vector
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert untouched()


def test_examples_that_change_meanwhile_count(model: nn.Module, batches: Any) -> None:
    operator = pk.operator(model, batches, "hessian", parameters="all")
    vector, _, _ = vectors(operator)
    with operator.steady():
        before = operator @ vector
        batches[0][0].mul_(0.5)
        found = operator @ vector
    assert not torch.equal(found, before)
    assert torch.equal(found, operator @ vector)


def test_measuring_in_between_changes_no_product(model: nn.Module, batches: Any) -> None:
    operator = pk.operator(model, batches, "hessian", parameters="all")
    vector, _, _ = vectors(operator)
    expected = operator @ vector
    with operator.steady():
        for _ in range(2):
            assert torch.equal(operator @ vector, expected)
            pk.statistics(model, batches, ["gradient"])
            pk.operator(model, batches, "ggn") @ torch.ones(35, dtype=float64)


def test_examples_that_come_anew_may_come_in_another_order(model: nn.Module, batches: Any) -> None:
    turns = iter(range(100))

    def shuffled() -> list[tuple[Tensor, Tensor]]:
        return [(x.clone(), y.clone()) for x, y in batches[:: 1 if next(turns) % 2 else -1]]

    operator = pk.operator(model, shuffled, "hessian", parameters="all")
    vector, _, _ = vectors(operator)
    expected = pk.operator(model, batches, "hessian", parameters="all") @ vector
    with operator.steady():
        for _ in range(3):
            torch.testing.assert_close(operator @ vector, expected)


def test_solvers_take_it_inside(model: nn.Module, batches: Any) -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    operator = pk.operator(model, batches, "hessian", parameters="all")
    dense = operator @ np.eye(operator.shape[0])
    with operator.steady():
        found = linalg.eigsh(operator, k=2, which="LA", return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(found), np.linalg.eigvalsh((dense + dense.T) / 2)[-2:])
