"""ALPS against its algorithm written out, and refits against least squares."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor, float64, nn

import prunekit as pk
from prunekit_plugins._selection import admm


def linear(inputs: int = 10, outputs: int = 6, dtype: torch.dtype = float64, seed: int = 0):
    torch.manual_seed(seed)
    model = nn.Linear(inputs, outputs, bias=False, dtype=dtype)
    mix = torch.randn(inputs, inputs, dtype=dtype) * torch.linspace(1, 0.1, inputs, dtype=dtype)
    x = torch.randn(60, inputs, dtype=dtype) @ mix
    return model, [
        (x[:40], torch.zeros(40, outputs, dtype=dtype)),
        (x[40:], torch.zeros(20, outputs, dtype=dtype)),
    ]


def published(weight: Tensor, gram: Tensor, keep: int, ridge: float, first: float) -> tuple[Tensor, Tensor]:
    """The authors' procedure, line by line (alps.py), without its cap on ρ, which is out of reach."""
    damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    norm = damped.diagonal().sqrt()
    a = damped / norm / norm[:, None]
    start = weight.T * norm[:, None]
    y = a @ start
    values, vectors = torch.linalg.eigh(a)

    def inverse(rho):
        return vectors @ torch.diag(1 / (values + rho)) @ vectors.T

    def top(t):
        out = torch.zeros_like(t).flatten()
        index = t.flatten().square().topk(keep).indices
        out[index] = t.flatten()[index]
        return out.view_as(t)

    rho, b, v, d = first, start.clone(), torch.zeros_like(start), top(start)
    initial, before, has_grown = d.clone(), d == 0, False
    for i in range(300):
        b = inverse(rho) @ (y - v + rho * d)
        d = top((v + rho * b) / rho)
        v = v + rho * (b - d)
        if (i + 1) % 3:
            continue
        changed = int(((d == 0) ^ before).sum())
        before = d == 0
        if changed / keep > 0.1:
            has_grown, rho = True, rho * 1.3
        elif changed / keep > 0.005:
            has_grown, rho = True, rho * 1.2
        elif changed > 0:
            if has_grown:
                rho *= 1.1
            else:
                rho, b, d, v = rho / 5, start.clone(), initial.clone(), torch.zeros_like(start)
        elif has_grown:
            break
        else:
            rho /= 5
        if i + 1 >= 30 and changed / keep < 3e-4:
            break
    kept = top(b) != 0
    solution = torch.zeros_like(start)
    for column in range(start.shape[1]):  # where ten steps of conjugate gradients lead to, on so few inputs
        rows = kept[:, column]
        solution[rows, column] = torch.linalg.solve(a[rows][:, rows], y[rows, column])
    return kept.T, (solution / norm[:, None]).T


def moments(batches, outputs: int) -> Tensor:
    x = torch.cat([x for x, _ in batches])
    return x.T @ x / (len(x) * outputs)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
@pytest.mark.parametrize(("inputs", "outputs"), [(10, 6), (16, 9)])
def test_alps_is_the_published_algorithm(inputs: int, outputs: int, sparsity: float, monkeypatch) -> None:
    for first in (0.1, admm._FIRST):
        monkeypatch.setattr(admm, "_FIRST", first)
        model, batches = linear(inputs, outputs)
        weight, size = model.weight.detach().clone(), inputs * outputs
        keep = size - round(sparsity * size)
        mask, values = published(weight, moments(batches, outputs), keep, 0.01, first)
        criterion = {"name": "alps", "refit": 40}
        pruning = pk.prune(model, batches, criterion, sparsity=sparsity, steps=1, loss="mse")
        assert torch.equal(pruning.masks["weight"], mask)
        torch.testing.assert_close(model.weight.detach(), values, rtol=1e-6, atol=1e-9)


def error(model: nn.Module, weight: Tensor, gram: Tensor) -> float:
    delta = model.weight.detach() - weight
    return float((delta @ gram * delta).sum())


def test_alps_comes_near_to_the_best_mask_of_all() -> None:
    """One output of nine inputs, of which four stay: 126 masks, each with its least-squares solution."""
    gaps = []
    for seed in range(10):
        model, batches = linear(9, 1, seed=seed)
        nn.init.normal_(model.weight)
        weight, gram = model.weight.detach().clone(), moments(batches, 1)
        best = float("inf")
        for some in combinations(range(9), 4):
            rows = list(some)
            fitted = torch.zeros_like(weight)
            fitted[0, rows] = torch.linalg.solve(gram[rows][:, rows], (gram @ weight[0])[rows])
            best = min(best, float(((fitted - weight) @ gram * (fitted - weight)).sum()))
        pk.prune(
            model, batches, {"name": "alps", "relative_damping": 1e-6}, sparsity=5 / 9, steps=1, loss="mse"
        )
        gaps.append(error(model, weight, gram) / best)
    assert min(gaps) == pytest.approx(1, abs=1e-3)
    assert sorted(gaps)[4] < 1.2


def test_alps_loses_less_than_sparsegpt_and_obc_on_correlated_inputs() -> None:
    errors = {}
    for name in ("alps", "obc", "sparsegpt"):
        model, batches = linear(48, 24)
        weight, gram = model.weight.detach().clone(), moments(batches, 24)
        pk.prune(model, batches, {"name": name, "relative_damping": 1e-3}, sparsity=0.5, steps=1, loss="mse")
        errors[name] = error(model, weight, gram)
    assert errors["alps"] < 1.03 * errors["obc"] < errors["sparsegpt"]


@pytest.mark.parametrize("kernel", [1, 3])
def test_alps_keeps_to_a_pattern_and_to_what_is_pruned(kernel: int) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(8, 6, kernel, padding=kernel // 2, dtype=float64, bias=False)
    x = torch.randn(20, 8, 5, 5, dtype=float64)
    batches = [(x, torch.zeros(20, 6, 5, 5, dtype=float64))]
    first = torch.rand_like(model.weight) > 0.1
    grouped = first.view(6, 2, 4, kernel, kernel)
    first = (grouped | (grouped.sum(2, keepdim=True) < 2)).view_as(first)
    criterion = {"name": "alps", "n": 2, "m": 4}
    pruning = pk.prune(
        model, batches, criterion, sparsity=0.5, steps=2, loss="mse", masks={"weight": first}, zeros="free"
    )
    mask = pruning.masks["weight"]
    assert not (mask & ~first).any()
    assert (mask.view(6, 2, 4, kernel, kernel).sum(2) == 2).all()
    assert not model.weight[~mask].any()


def test_weights_of_inputs_that_are_always_zero_go_first_and_else_stay_as_they_are() -> None:
    model, batches = linear()
    batches = [(x * torch.tensor([0.0, *[1.0] * 9], dtype=float64), y) for x, y in batches]
    weight = model.weight.detach().clone()
    pruning = pk.prune(model, batches, "alps", sparsity=0.05, steps=1, loss="mse")
    mask = pruning.masks["weight"]
    assert int((~mask).sum()) == int((~mask[:, 0]).sum()) == 3
    assert torch.equal(model.weight[:, 0], weight[:, 0] * mask[:, 0])


@pytest.mark.parametrize(
    "criterion",
    [
        {"name": "sparsegpt", "refit": "cg"},
        {"name": "wanda", "update": "cg"},
        {"name": "magnitude", "update": "cg"},
    ],
    ids=lambda c: c["name"],
)
def test_ten_steps_of_conjugate_gradients_come_near_to_least_squares(criterion) -> None:
    """And never make it worse than the values that they begin with; with as many steps as inputs they are there."""
    model, batches = linear(32, 12)
    weight = model.weight.detach().clone()
    gram = moments(batches, 12) + 0.01 * moments(batches, 12).diagonal().mean() * torch.eye(32, dtype=float64)
    found = {}
    for name, value in (("none", False), ("cg", "cg")):
        with torch.no_grad():
            model.weight.copy_(weight)
        key = "refit" if criterion["name"] == "sparsegpt" else "update"
        pruning = pk.prune(model, batches, {**criterion, key: value}, sparsity=0.5, steps=1, loss="mse")
        found[name] = error(model, weight, gram)
        mask = pruning.masks["weight"]
    best = torch.zeros_like(weight)
    for row, kept in enumerate(mask):
        best[row, kept] = torch.linalg.solve(gram[kept][:, kept], (gram @ weight[row])[kept])
    least = float(((best - weight) @ gram * (best - weight)).sum())
    assert least <= found["cg"] < found["none"]
    assert found["cg"] - least < 0.1 * (found["none"] - least)


def test_single_precision_changes_hardly_any_mask() -> None:
    """From 512 inputs on the moments are added up in single precision, unless the weights are double."""
    for name in ("sparsegpt", "alps"):
        single, batches = linear(512, 16, torch.float32)
        double, _ = linear(512, 16, torch.float32)
        double = double.double()
        first = pk.prune(single, batches, name, sparsity=0.5, steps=1, loss="mse").masks["weight"]
        pairs = [(x.double(), y.double()) for x, y in batches]
        second = pk.prune(double, pairs, name, sparsity=0.5, steps=1, loss="mse").masks["weight"]
        assert int((first != second).sum()) <= 0.01 * first.numel()
