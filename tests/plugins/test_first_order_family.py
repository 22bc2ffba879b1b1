"""GraSP and SynFlow, and the statistics they are made from."""

from __future__ import annotations

import copy
from itertools import pairwise

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


def rectifiers(*sizes: int, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A ReLU network without biases."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after, bias=False, dtype=dtype), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(6, 3, bias=False),
    ).double()


@pytest.mark.parametrize(
    ("model", "shape"), [(rectifiers(5, 9, 7, 3), (5,)), (convolutions(), (2, 10, 10))], ids=["mlp", "conv"]
)
def test_every_layer_has_the_same_total_flow(model, shape) -> None:
    batch = torch.randn(6, *shape, dtype=torch.float64), torch.randint(3, (6,))
    totals = torch.stack([s.sum() for s in pk.saliency(model, [batch], "synflow").values()])
    absolute = copy.deepcopy(model)
    for p in absolute.parameters():
        p.data.abs_()
    flow = absolute(torch.ones(1, *shape, dtype=torch.float64)).sum().detach()
    torch.testing.assert_close(totals, flow.expand(len(totals)), rtol=1e-10, atol=0)


def test_the_flow_of_a_linear_network_is_a_product_of_matrices() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6, bias=False), nn.Linear(6, 5, bias=False), nn.Linear(5, 3, bias=False)
    )
    model.double()
    first, second, third = (layer.weight.detach().abs() for layer in model)
    left, right = torch.ones(3, dtype=torch.float64) @ third, first @ torch.ones(4, dtype=torch.float64)
    batch = examples()
    found = pk.saliency(model, [batch], "synflow")
    torch.testing.assert_close(found["1.weight"], torch.outer(left, right) * second, rtol=1e-12, atol=0)
    torch.testing.assert_close(found["0.weight"].sum(), left @ second @ right, rtol=1e-12, atol=0)


def test_the_data_and_the_signs_of_weights_do_not_matter_and_pruned_weights_have_no_flow() -> None:
    model = rectifiers(4, 6, 3)
    model[0].weight.data[:2] = 0
    first = pk.saliency(model, [examples()], "synflow")
    assert not first["0.weight"][:2].any()
    assert not first["2.weight"][:, :2].any()  # what follows units that are gone
    model[0].weight.data.neg_()
    second = pk.saliency(model, [examples(3), examples(5)], "synflow")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_buffers_are_taken_absolute_in_eval_mode_and_nothing_is_changed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3))
    model(torch.randn(20, 4) + 3)
    before = copy.deepcopy(model.state_dict())
    found = pk.saliency(model, [(torch.randn(6, 4), torch.randint(3, (6,)))], "synflow", parameters="all")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    twin = copy.deepcopy(model).double().eval()
    for value in twin.state_dict().values():
        value.abs_()
    twin(torch.ones(1, 4, dtype=torch.float64)).sum().backward()
    for name, p in twin.named_parameters():
        assert found[name].dtype == torch.float64
        torch.testing.assert_close(found[name], (p.grad * p.detach()).abs())


def test_a_flow_beyond_float32_is_found_and_one_beyond_float64_is_refused() -> None:
    model = rectifiers(4, 6, 6, 3, dtype=torch.float32)
    batch = torch.zeros(5, 4), torch.randint(3, (5,))
    for p in model.parameters():
        p.data *= 1e20
    found = pk.saliency(model, [batch], "synflow")
    totals = torch.stack([s.sum() for s in found.values()])
    assert bool((totals > torch.finfo(torch.float32).max).all())
    torch.testing.assert_close(totals, totals[:1].expand(3), rtol=1e-6, atol=0)

    model = rectifiers(4, 6, 6, 3)
    for p in model.parameters():
        p.data *= 1e150
    with pytest.raises(pk.UnsupportedError, match=r"synaptic_flow: .*not finite even in float64"):
        pk.saliency(model, [(batch[0].double(), batch[1])], "synflow")


def test_inputs_that_cannot_be_ones_are_refused_and_several_tensors_are_ones() -> None:
    words = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 3))
    batch = torch.randint(7, (5, 3)), torch.randint(3, (5,))
    with pytest.raises(pk.UnsupportedError, match=r"synaptic_flow: an input is torch\.int64"):
        pk.saliency(words, [batch], "synflow")

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 3, bias=False), nn.Linear(2, 3, bias=False)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.first(a) + self.second(b)

    torch.manual_seed(0)
    model, a, b, y = Two(), torch.randn(5, 4), torch.randn(5, 2), torch.randint(3, (5,))
    for inputs in ((a, b), {"b": b, "a": a}):
        found = pk.saliency(model, [(inputs, y)], "synflow")
        for name, p in model.named_parameters():
            torch.testing.assert_close(found[name], p.detach().double().abs())


def test_many_steps_leave_weights_in_every_layer_where_one_step_empties_some() -> None:
    """The conservation law at work (Tanaka et al., theorem 3)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 200), nn.ReLU(), nn.Linear(200, 30), nn.ReLU(), nn.Linear(30, 4))
    batch = torch.randn(8, 20), torch.randint(4, (8,))
    left = {}
    for steps in (1, 100):
        pruning = pk.prune(copy.deepcopy(model), [batch], "synflow", sparsity=0.99, steps=steps)
        left[steps] = [int(mask.sum()) for mask in pruning.masks.values()]
    assert left[1][0] == 0
    assert min(left[100]) > 0
    assert sum(left[1]) == sum(left[100])


def test_the_hessian_gradient_does_not_follow_memory_that_is_filled_again() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.randint(3, (20,))

    class Refilled:
        def __iter__(self):
            room, labels = torch.empty(10, 6, dtype=torch.float64), torch.empty(10, dtype=torch.long)
            for start in (0, 10):
                room.copy_(x[start : start + 10])
                labels.copy_(y[start : start + 10])
                yield room, labels

    found = pk.statistics(model, Refilled(), "hessian_gradient")["hessian_gradient"]
    expected = pk.statistics(model, [(x, y)], "hessian_gradient")["hessian_gradient"]
    torch.testing.assert_close(found, expected)
