"""Networks drawn at random: statistics, products, masks and changes of the loss are the oracle's.

A draw that fails is printed as a program. `pytest -m slow tests/core/test_generated.py` draws for ten minutes.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import generated
import pytest
import torch
from oracle import Oracle
from torch import Tensor

import prunekit as pk

DRAWS = 200
MINUTES = 10
MOST = 80  # weights for which the Hessian is formed, a row each
FIRST = {"lm": (1.0, 0.0), "obd": (0.0, 1.0), "qm": (1.0, 1.0)}


def assert_close(values: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    for name, value in expected.items():
        off = float((values[name] - value).abs().max())
        assert off <= 1e-9 * max(1e-3, float(value.abs().max())), f"{what} of {name}: off by {off:.1e}"


def compare(seed: int) -> None:
    """One draw."""
    drawn: dict[str, Any] = {}
    exec(generated.program(seed), drawn)
    model, batches, loss, memory = (drawn[key] for key in ("model", "batches", "loss", "memory"))
    before = copy.deepcopy(model.state_dict())
    names = list(pk.saliency(model, batches, "magnitude", loss=loss))
    oracle = Oracle(model, drawn["x"], drawn["y"], names, loss)
    small = oracle.jacobian.shape[2] <= MOST
    for statistic, expected in oracle.statistics().items():
        if statistic == "hessian_diagonal" and not small:
            continue
        values = pk.statistics(model, batches, [statistic], loss=loss, memory=memory)[statistic]
        assert_close(dict(values), expected(), statistic)
    vector = torch.randn(oracle.jacobian.shape[2], dtype=torch.float64)
    for kind, matrix in oracle.matrices().items():
        if kind == "hessian" and not small:
            continue
        product = pk.operator(model, batches, kind, loss=loss, memory=memory) @ oracle.split(vector)
        assert_close(product, oracle.split(matrix() @ vector), f"{kind} product")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for criterion, (first, second) in FIRST.items():
        prune(model, batches, oracle, criterion, first, second, memory, loss)


def prune(
    model: Any,
    batches: Any,
    oracle: Oracle,
    criterion: str,
    first: float,
    second: float,
    memory: Any,
    loss: str,
) -> None:
    """One step: what goes, what it was said to cost, what it cost."""
    values = oracle.statistics()
    gradient, diagonal = values["gradient"](), values["ggn_diagonal"]()
    weights = {name: p.detach() for name, p in oracle.parameters.items()}
    change = {n: -first * gradient[n] * w + second * 0.5 * diagonal[n] * w**2 for n, w in weights.items()}
    flat = torch.cat([c.flatten() for c in change.values()])
    budget = round(0.5 * len(flat))
    order = flat.abs().argsort(stable=True)
    gap = float(flat.abs()[order[budget]] - flat.abs()[order[budget - 1]])
    if gap <= 1e-12:
        return  # rounding decides
    gone = torch.zeros_like(flat, dtype=torch.bool)
    gone[order[:budget]] = True
    pruned = copy.deepcopy(model)
    pruning = pk.prune(pruned, batches, criterion, sparsity=0.5, steps=1, loss=loss, memory=memory)
    masks = torch.cat([mask.flatten() for mask in pruning.masks.values()])
    assert torch.equal(~masks, gone), f"{criterion}: the masks"
    (step,) = pruning.steps
    assert step.predicted_delta_loss == pytest.approx(float(flat[gone].sum()), rel=1e-9, abs=1e-12)
    here = float(oracle.loss().detach())
    with torch.no_grad():
        for name, part in oracle.split(gone).items():
            pruned.load_state_dict({**pruned.state_dict(), name: weights[name].masked_fill(part, 0.0)})
    there = float(oracle.total(pruned(oracle.x), oracle.y).detach() / oracle.normaliser)
    assert step.delta_loss == pytest.approx(there - here, rel=1e-9, abs=1e-12)


def told(seed: int) -> None:
    """Compare, and print what fails."""
    try:
        compare(seed)
    except Exception as error:
        error.add_note(f"draw {seed}:\n{generated.program(seed)}")
        raise


@pytest.mark.parametrize("part", range(4))
def test_networks_drawn_at_random_are_exact(part: int) -> None:
    for seed in range(part, DRAWS, 4):
        told(seed)


@pytest.mark.slow
def test_networks_are_drawn_at_random_for_ten_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    start, seed = time.monotonic(), DRAWS
    while time.monotonic() - start < 60 * MINUTES:
        told(seed)
        seed += 1
    with capsys.disabled():
        print(f"\n{seed - DRAWS} networks drawn, all exact")
