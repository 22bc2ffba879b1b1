"""Optimal Brain Surgeon against closed forms, on losses that are quadratic and on networks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dense import dense
from torch import Tensor, float64, nn

import prunekit as pk
from prunekit.plugins.build import component

INPUTS, EXAMPLES = 7, 40


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The same numbers in any order of tests."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def problem() -> tuple[nn.Linear, Tensor, Tensor]:
    """Least squares with correlated inputs: the loss is quadratic, its Hessian 2 XᵀX / N."""
    x = torch.randn(EXAMPLES, INPUTS, dtype=float64) @ torch.randn(INPUTS, INPUTS, dtype=float64)
    y = torch.randn(EXAMPLES, 1, dtype=float64)
    return nn.Linear(INPUTS, 1, bias=False, dtype=float64), x, y


def at_the_minimum(model: nn.Linear, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.t())


def refitted(x: Tensor, y: Tensor, kept: Tensor) -> tuple[Tensor, float]:
    """Least squares with the kept inputs alone."""
    weight = torch.zeros(INPUTS, dtype=float64)
    weight[kept] = torch.linalg.lstsq(x[:, kept], y).solution.squeeze(1)
    return weight, float(F.mse_loss(x @ weight.unsqueeze(1), y))


def prune(
    model: nn.Module, x: Tensor, y: Tensor, criterion: dict[str, Any], left: int, **options: Any
) -> Any:
    total = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    scheduler = {"name": "explicit", "levels": [1 - left / total]}
    return pk.prune(model, [(x, y)], criterion, scheduler=scheduler, **{"loss": "mse", **options})


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_the_saliency_is_the_exact_increase_after_refitting_the_others(problem, curvature) -> None:
    model, x, y = problem
    at_the_minimum(model, x, y)
    base = float(F.mse_loss(model(x), y).detach())
    criterion = {"name": "obs", "curvature": curvature, "damping": 0.0}
    saliency = pk.saliency(model, [(x, y)], criterion, loss="mse")["weight"][0]
    for q in range(INPUTS):
        others = torch.arange(INPUTS)[torch.arange(INPUTS) != q]
        assert float(saliency[q]) == pytest.approx(refitted(x, y, others)[1] - base, rel=1e-8)


@pytest.mark.parametrize("selection", ["greedy", "saliency"])
@pytest.mark.parametrize("left", [6, 3, 1])
def test_an_update_is_the_refit_and_the_prediction_exact_for_any_number_at_once(
    problem, selection, left
) -> None:
    model, x, y = problem
    at_the_minimum(model, x, y)
    pruning = prune(model, x, y, {"name": "obs", "damping": 0.0, "selection": selection}, left)
    kept = pruning.masks["weight"][0].nonzero().squeeze(1)
    assert len(kept) == left
    expected, _ = refitted(x, y, kept)
    torch.testing.assert_close(model.weight[0].detach(), expected, rtol=1e-8, atol=1e-10)
    step = pruning.steps[0]
    assert step.predicted_delta_loss == pytest.approx(step.delta_loss, rel=1e-8)


def test_greedy_elimination_is_one_weight_after_another_with_a_fresh_inverse(problem) -> None:
    model, x, y = problem
    at_the_minimum(model, x, y)
    one_by_one = copy.deepcopy(model)
    pruning = prune(model, x, y, {"name": "obs", "damping": 1e-3}, 2)
    levels = [1 - left / INPUTS for left in range(INPUTS - 1, 1, -1)]
    again = pk.prune(
        one_by_one,
        [(x, y)],
        {"name": "obs", "damping": 1e-3, "selection": "saliency"},
        scheduler={"name": "explicit", "levels": levels},
        loss="mse",
    )
    assert torch.equal(pruning.masks["weight"], again.masks["weight"])


@pytest.mark.parametrize("left", [5, 2])
def test_with_the_gradient_the_model_is_exact_anywhere_on_a_quadratic(problem, left) -> None:
    model, x, y = problem  # at random weights
    pruning = prune(model, x, y, {"name": "obs_gradient", "damping": 0.0}, left)
    kept = pruning.masks["weight"][0].nonzero().squeeze(1)
    expected, _ = refitted(x, y, kept)
    torch.testing.assert_close(model.weight[0].detach(), expected, rtol=1e-7, atol=1e-9)
    step = pruning.steps[0]
    assert step.predicted_delta_loss == pytest.approx(step.delta_loss, rel=1e-8)


def test_without_the_update_survivors_stay_and_the_prediction_is_of_the_removal_alone(problem) -> None:
    model, x, y = problem
    at_the_minimum(model, x, y)
    before = model.weight.detach().clone()
    pruning = prune(model, x, y, {"name": "obs", "damping": 0.0, "update": False}, 4)
    kept = pruning.masks["weight"]
    assert torch.equal(model.weight[kept], before[kept])
    step = pruning.steps[0]
    assert step.predicted_delta_loss == pytest.approx(step.delta_loss, rel=1e-8)


def test_with_a_diagonal_matrix_the_gradient_variant_is_the_quadratic_model_up_to_a_constant() -> None:
    """Independent inputs of one row each: C is diagonal."""
    scale = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=float64)
    x, y = torch.diag(scale), torch.tensor([[1.0], [-2.0], [0.5], [4.0]], dtype=float64)
    model = nn.Linear(4, 1, bias=False, dtype=float64)
    found = pk.statistics(model, [(x, y)], ["gradient", "ggn_diagonal"], loss="mse")
    g, d, w = found["gradient"]["weight"], found["ggn_diagonal"]["weight"], model.weight.detach()
    saliency = pk.saliency(model, [(x, y)], {"name": "obs_gradient", "damping": 0.0}, loss="mse")["weight"]
    torch.testing.assert_close(saliency, -g * w + 0.5 * d * w**2 + g**2 / (2 * d))


def network() -> tuple[nn.Sequential, Tensor, Tensor]:
    model = nn.Sequential(
        nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.LayerNorm(9), nn.Linear(9, 3)
    ).double()
    return model, torch.randn(11, 2, 4, dtype=float64), torch.randint(3, (11,))


@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher", "hessian"])
def test_the_inverse_is_that_of_the_damped_matrix_over_any_parameters(curvature) -> None:
    model, x, y = network()
    matrix = dense(model, [(x, y)], curvature, "all")
    damping = 1e-2 if curvature != "hessian" else 10.0
    request = pk.Statistic("inverse_full", curvature=curvature, damping=damping)
    found = pk.statistics(model, [(x[:6], y[:6]), (x[6:], y[6:])], request, parameters="all")["inverse_full"]
    torch.testing.assert_close(found.curvature, matrix, rtol=1e-9, atol=1e-12)
    expected = torch.linalg.inv(matrix + damping * torch.eye(len(matrix), dtype=float64))
    torch.testing.assert_close(found.matrix, expected, rtol=1e-7, atol=1e-9)
    flat = torch.cat([t.flatten() for t in found.values()])
    assert torch.equal(flat, found.matrix.diagonal())


def test_drawn_labels_give_the_ggn_on_average() -> None:
    model, x, y = network()
    exact = pk.statistics(model, [(x, y)], pk.Statistic("inverse_full"))["inverse_full"].curvature
    request = pk.Statistic("inverse_full", curvature="ggn_mc", draws=3000)
    drawn = pk.statistics(model, [(x, y)], request)["inverse_full"].curvature
    assert float((drawn - exact).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize("name", ["obs", "obs_gradient"])
def test_later_steps_cover_only_what_is_left_and_masks_nest(name) -> None:
    model, x, y = network()
    biases = {n: p.detach().clone() for n, p in model.named_parameters() if "weight" not in n}
    pruning = pk.prune(model, [(x, y)], {"name": name, "damping": 1e-2}, sparsity=0.6, steps=3)
    total = sum(m.numel() for m in pruning.masks.values())
    assert [step.pruned for step in pruning.steps] == [
        round(step.target_sparsity * total) for step in pruning.steps
    ]
    for key, mask in pruning.masks.items():
        assert not model.get_parameter(key)[~mask].any()
        assert (model.get_parameter(key)[mask] != 0).all()
    for key, value in biases.items():
        assert torch.equal(model.get_parameter(key), value)
    masks = pruning.masks
    saliency = pk.saliency(model, [(x, y)], {"name": "obs", "damping": 1e-2}, masks=masks)
    assert all(not saliency[key][~mask].any() for key, mask in masks.items())


def test_lambda_is_added_to_the_damping() -> None:
    model, x, y = network()
    plain = pk.saliency(model, [(x, y)], {"name": "obs", "damping": 0.03})
    split = pk.saliency(model, [(x, y)], {"name": "obs", "damping": 0.01, "lambda": 0.02})
    for key in plain:
        torch.testing.assert_close(plain[key], split[key])
    (request,) = component("criterion", "obs").required(0.5)
    assert request.options["damping"] == pytest.approx(0.5001)


def test_an_indefinite_matrix_is_refused_with_the_damping_that_would_do() -> None:
    model, x, y = network()
    matrix = dense(model, [(x, y)], "hessian", "all")
    keep = torch.cat([torch.full(p.shape, p.ndim > 1).flatten() for p in model.parameters()])
    lowest = float(torch.linalg.eigvalsh(matrix[keep][:, keep])[0])
    assert lowest < 0
    request = pk.Statistic("inverse_full", curvature="hessian", damping=0.5 * -lowest)
    names = ["0.weight", "4.weight"]
    with pytest.raises(
        pk.UnsupportedError, match=rf"not positive definite.*damping must be above {-lowest:.3g}"
    ):
        pk.statistics(model, [(x, y)], request, parameters=names)


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    model = nn.Linear(100, 50)
    batch = torch.randn(4, 100), torch.randint(50, (4,))
    with pytest.raises(
        pk.UnsupportedError, match=r"5,000 kept weights take 1.5 GiB .* enough for 724 weights. .*2GiB"
    ):
        pk.statistics(model, [batch], "inverse_full", memory=32 << 20)


def test_a_network_that_is_too_large_is_refused_before_the_first_step() -> None:
    model = nn.Linear(100, 60)
    before = model.weight.detach().clone()
    batch = torch.randn(4, 100), torch.randint(50, (4,))
    with pytest.raises(pk.UnsupportedError, match=r"6,000 kept weights take 2.1 GiB"):
        pk.prune(model, lambda: pytest.fail("nothing is read"), "obs", sparsity=0.5, steps=1)
    assert torch.equal(model.weight, before)
    with pytest.raises(pk.UnsupportedError, match=r"6,000 kept weights"):
        pk.saliency(model, [batch], "obs")


def test_a_selector_beside_greedy_elimination_is_refused_and_works_with_saliencies() -> None:
    model, x, y = nn.Linear(8, 3, dtype=float64), torch.randn(20, 8, dtype=float64), torch.randint(3, (20,))
    with pytest.raises(pk.SpecError, match="'obs' chooses the masks itself"):
        pk.prune(model, [(x, y)], "obs", sparsity=0.5, steps=1, selector="layerwise")
    ranking = {"name": "obs", "selection": "saliency"}
    pruning = pk.prune(model, [(x, y)], ranking, sparsity=0.5, steps=2, selector="nm")
    assert (pruning.masks["weight"].reshape(-1, 4).sum(1) == 2).all()
    assert component("criterion", ranking).uses_selector
