"""GraSP, and the statistic it is made from."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

import prunekit as pk


def smooth(seed: int = 0) -> nn.Module:
    """A small network with curvature everywhere, in float64."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()


def examples(count: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 4, dtype=torch.float64), torch.randint(3, (count,))


def dense_product(model: nn.Module, loss) -> dict[str, torch.Tensor]:
    """Hg with the whole matrix; ``loss`` takes the model's parameters."""
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]

    def of(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split(sizes)
        return loss({n: v.view(p.shape) for (n, p), v in zip(parameters.items(), parts, strict=True)})

    flat = torch.cat([p.flatten() for p in parameters.values()])
    hessian = torch.autograd.functional.hessian(of, flat)
    found = (hessian @ torch.autograd.functional.jacobian(of, flat)).split(sizes)
    return {n: v.view(p.shape) for (n, p), v in zip(parameters.items(), found, strict=True)}


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("memory", [None, 4000])
def test_the_product_is_that_of_the_whole_sets_mean_loss(temperature, memory) -> None:
    model, (x, y) = smooth(), examples()
    expected = dense_product(
        model, lambda values: cross_entropy(functional_call(model, values, (x,)) / temperature, y)
    )
    request = pk.Statistic("hessian_gradient", temperature=temperature)
    batches = [(x[:8], y[:8]), (x[8:], y[8:])]
    found = pk.statistics(model, batches, [request, "gradient"], parameters="all", memory=memory)[request]
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


def test_the_product_is_half_the_gradient_of_the_gradients_squared_norm_for_any_loss() -> None:
    model, (x, _) = smooth(), examples()
    y = torch.randn(11, 3, dtype=torch.float64)
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(mse_loss(model(x), y), parameters, create_graph=True)
    expected = torch.autograd.grad(sum(g.square().sum() for g in slopes) / 2, parameters)
    found = pk.statistics(model, [(x, y)], "hessian_gradient", loss="mse", parameters="all")[
        "hessian_gradient"
    ]
    for value, truth in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-9, atol=1e-12)


def test_the_product_is_zero_where_the_loss_does_not_depend_on_a_weight_or_only_linearly() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = smooth(), nn.Linear(2, 2).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    x, y = examples()
    found = pk.statistics(Idle(), [(x, y)], "hessian_gradient", parameters="all")["hessian_gradient"]
    assert not found["idle.weight"].any()
    assert found["used.0.weight"].all()

    class Sum(pk.Loss):
        name = "sum"

        def total(self, outputs, targets):
            return outputs.sum()

        def normaliser(self, outputs, targets):
            return float(len(outputs))

    linear = nn.Linear(4, 3).double()
    found = pk.statistics(linear, [(x, y)], "hessian_gradient", loss=Sum())["hessian_gradient"]
    assert not found["weight"].any()


@pytest.mark.parametrize("options", [{}, {"temperature": 2}])
def test_grasp_keeps_what_the_published_score_ranks_low(options) -> None:
    model, (x, y) = smooth(), examples()
    temperature = options.get("temperature", 200.0)
    products = dense_product(
        model, lambda values: cross_entropy(functional_call(model, values, (x,)) / temperature, y)
    )
    # H and g of all parameters; those of the weights alone need the blocks of the weights.
    found = pk.saliency(
        model, [(x[:4], y[:4]), (x[4:], y[4:])], {"name": "grasp", **options}, parameters="all"
    )
    for name, p in model.named_parameters():
        published = -p.detach() * products[name]
        torch.testing.assert_close(found[name], -published, rtol=1e-9, atol=1e-15)


def test_grasp_prunes_the_largest_scores() -> None:
    model, (x, y) = smooth(), examples()
    saliency = torch.cat([s.flatten() for s in pk.saliency(model, [(x, y)], "grasp").values()])
    assert saliency.min() < 0 < saliency.max()
    pruning = pk.prune(model, [(x, y)], "grasp", sparsity=0.4, steps=1)
    kept = torch.cat([m.flatten() for m in pruning.masks.values()])
    assert int((~kept).sum()) == round(0.4 * len(kept))
    assert (-saliency)[~kept].min() >= (-saliency)[kept].max()
    assert pruning.steps[0].predicted_delta_loss is None


def test_a_temperature_must_be_positive() -> None:
    model, batch = smooth(), examples()
    with pytest.raises(pk.SpecError, match=r"grasp.*temperature: must be greater than 0"):
        pk.saliency(model, [batch], {"name": "grasp", "temperature": 0})
