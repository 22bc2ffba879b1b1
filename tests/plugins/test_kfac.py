"""Kronecker-factored curvature, its damped inverse and its update, against naive loops and dense matrices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, float64, nn

import prunekit as pk
from prunekit.plugins.build import component, estimators
from prunekit.seeds import generator
from prunekit.statistics.estimate import estimate as engine
from prunekit_plugins._linalg.conjugate import solved
from prunekit_plugins.criteria import obs_kfac

ALPHA = 0.01


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The same numbers in any order of tests."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Network(nn.Module):
    """Strides, padding, groups, a transposed convolution, tokens, a weight used twice, a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2)
        self.up = nn.ConvTranspose1d(6, 4, 2, stride=2, padding=1, groups=2)
        self.tokens = nn.Linear(4, 3)
        self.twice = nn.Linear(3, 3, bias=False)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.up(torch.tanh(self.conv(x))))
        x = torch.tanh(self.tokens(x.transpose(1, 2)))
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        out: Tensor = self.head(x.mean(1))
        return out


def awkward() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    y = torch.randint(4, (7,))
    lengths = (6, 9)  # other numbers of positions in the short last batch
    x = [torch.randn(n, 4, length, dtype=float64) for n, length in zip((4, 3), lengths, strict=True)]
    return Network().double(), [(x[0], y[:4]), (x[1], y[4:])]


def mlp(examples: int = 20) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4, bias=False)).double()
    x, y = torch.randn(examples, 6, dtype=float64), torch.randint(4, (examples,))
    return model, [(x[:15], y[:15]), (x[15:], y[15:])]


def estimate(model: nn.Module, batches: Any, masks: dict[str, Tensor], **options: Any) -> Any:
    """As a step does it, with what is kept."""
    request = pk.Statistic("inverse_kfac", **{"damping": ALPHA, **options})
    parameters = {n: model.get_parameter(n) for n in masks}
    loss = component("loss", "cross_entropy")
    wanted = [request, "gradient"]
    return engine(model, batches, estimators(wanted), loss, parameters, generator(0), masks=masks).statistics


def all_kept(model: nn.Module, names: list[str] | None = None) -> dict[str, Tensor]:
    names = names or [n for n, p in model.named_parameters() if p.ndim > 1]
    return {n: torch.ones_like(model.get_parameter(n), dtype=torch.bool) for n in names}


def random_masks(model: nn.Module, share: float, names: list[str] | None = None) -> dict[str, Tensor]:
    masks = {n: torch.rand(m.shape) >= share for n, m in all_kept(model, names).items()}
    pk.apply_masks(model, masks)
    return masks


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.flatten() for t in tensors.values()])


def pairs(layer: nn.Module, x: Tensor, g: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """By the definition: group, input and gradient of one example at each position of a use."""
    if isinstance(layer, nn.Linear):
        for a, b in zip(x.view(-1, x.shape[-1]), g.view(-1, g.shape[-1]), strict=True):
            yield 0, a, b
        return
    (kernel,), (stride,), (padding,), groups = layer.kernel_size, layer.stride, layer.padding, layer.groups
    few, many = (x, g) if isinstance(layer, nn.ConvTranspose1d) else (g, x)
    wide = F.pad(many, (padding, padding + kernel))
    for group in range(groups):
        for t in range(few.shape[1]):
            window = wide.chunk(groups)[group][:, t * stride : t * stride + kernel].flatten()
            column = few.chunk(groups)[group][:, t]
            yield (
                (group, column, window) if isinstance(layer, nn.ConvTranspose1d) else (group, window, column)
            )


def naive(model: nn.Module, batches: Any, empirical: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """A and G of every weight, one example, column and position at a time."""
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "weight")}
    sums: dict[str, list[Any]] = {n: [{}, {}, 0] for n in layers}
    seen = 0
    for xs, ys in batches:
        for x, y in zip(xs, ys, strict=True):
            seen += 1
            uses: list[tuple[str, Tensor, Tensor]] = []
            hooks = [
                m.register_forward_hook(lambda _, i, o, n=n, uses=uses: uses.append((n, i[0].detach()[0], o)))
                for n, m in layers.items()
            ]
            output = model(x.unsqueeze(0))
            for hook in hooks:
                hook.remove()
            p = output[0].detach().softmax(0)
            if empirical:
                factor = (p - F.one_hot(y, len(p))).unsqueeze(1)
            else:
                values, vectors = torch.linalg.eigh(p.diag() - p.outer(p))
                factor = vectors * values.clamp(min=0).sqrt()
            for n, a_in, output_at in uses:
                for group, a, _ in pairs(layers[n], a_in, output_at.detach()[0]):
                    sums[n][0][group] = sums[n][0].get(group, 0) + a.outer(a)
                    sums[n][2] += group == 0
            for column in factor.t():
                gradients = torch.autograd.grad(output[0] @ column, [o for *_, o in uses], retain_graph=True)
                for (n, a_in, _), gradient in zip(uses, gradients, strict=True):
                    for group, _, g in pairs(layers[n], a_in, gradient[0]):
                        sums[n][1][group] = sums[n][1].get(group, 0) + g.outer(g)
    return {
        f"{n}.weight": (torch.stack(list(a.values())) / count, torch.stack(list(g.values())) / seen)
        for n, (a, g, count) in sums.items()
    }


@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher"])
@pytest.mark.parametrize("network", [awkward, mlp])
@pytest.mark.parametrize("memory", [None, 12_000])
def test_factors_are_sums_over_examples_columns_and_positions(network, curvature, memory) -> None:
    model, batches = network()
    expected = naive(model, batches, curvature == "empirical_fisher")
    request = pk.Statistic("inverse_kfac", curvature=curvature)
    found = pk.statistics(model, batches, request, memory=memory)["inverse_kfac"]
    assert [f.layer for f in found.families] == list(expected)
    for family in found.families:
        a, g = expected[family.layer]
        torch.testing.assert_close(family.inputs, a, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(family.outputs, g, rtol=1e-9, atol=1e-12)


def dense(family: Any, size: int) -> Tensor:
    """A ⊗ G over all weights of all layers, in their order."""
    matrix = torch.zeros(size, size, dtype=float64)
    for a, g, places in zip(family.inputs, family.outputs, family.positions, strict=True):
        index = places.flatten()
        matrix[index.unsqueeze(1), index] = torch.kron(g, a)
    return matrix


@pytest.mark.parametrize("network", [awkward, mlp])
@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("alpha", [1e-3, 1.0])
def test_blocks_are_what_a_unit_is_in_the_dense_damped_inverse(network, share, alpha) -> None:
    model, batches = network()
    masks = random_masks(model, share)
    kept = flat(masks)
    size = len(kept)
    (found, *_) = estimate(model, batches, masks, damping=alpha).values()
    matrix = sum(dense(family, size) for family in found.families)
    inverted = torch.linalg.inv(matrix + alpha * torch.eye(size, dtype=float64))
    seen = torch.zeros(size, dtype=torch.bool)
    for chunk in found.chunks():
        blocks = zip(chunk.index, chunk.there, chunk.inverse, strict=True)
        damped = chunk.family.damped(chunk.start, chunk.stop, alpha)
        plain = chunk.family.curvature(chunk.start, chunk.stop)
        for number, (index, there, inverse) in enumerate(blocks):
            own = index[there]
            positions = chunk.family.positions.flatten(0, 1)
            (unit,) = [row for row in positions if bool(torch.isin(own, row).all())]
            assert torch.equal(own, unit[kept[unit]])
            free = torch.linalg.inv(inverted[unit][:, unit])[kept[unit]][:, kept[unit]]
            torch.testing.assert_close(damped[number, : len(own), : len(own)], free, rtol=1e-7, atol=1e-9)
            expected = torch.eye(len(index), dtype=float64)
            expected[: len(own), : len(own)] = torch.linalg.inv(free)
            torch.testing.assert_close(inverse, expected, rtol=1e-7, atol=1e-9)
            torch.testing.assert_close(flat(found)[own], inverse.diagonal()[: len(own)])
            if share == 0:
                torch.testing.assert_close(inverse, inverted[unit][:, unit], rtol=1e-9, atol=1e-9)
            undamped = torch.zeros_like(inverse)
            undamped[: len(own), : len(own)] = free - alpha * torch.eye(len(own), dtype=float64)
            torch.testing.assert_close(plain[number], undamped, rtol=1e-7, atol=1e-9)
            assert not bool(seen[own].any())
            seen[own] = True
    assert torch.equal(seen, kept)
    assert not bool(flat(found)[~kept].any())
    change = torch.randn(size, dtype=float64) * kept
    assert found.curved(change) == pytest.approx(float(change @ matrix @ change), rel=1e-9)


def test_one_example_and_one_position_are_exact() -> None:
    model, batches = mlp(1)
    batches = batches[:1]
    operator = pk.operator(model, batches, "ggn")
    found = pk.statistics(model, batches, pk.Statistic("inverse_kfac", damping=ALPHA))["inverse_kfac"]
    for name, value in found.items():
        exact = torch.zeros(value.numel(), value.numel(), dtype=float64)
        for k in range(value.numel()):
            unit = {n: torch.zeros_like(p) for n, p in found.items()}
            unit[name].view(-1)[k] = 1
            exact[k] = (operator @ unit)[name].flatten()
        inverted = torch.linalg.inv(exact + ALPHA * torch.eye(len(exact), dtype=float64))
        torch.testing.assert_close(value.flatten(), inverted.diagonal(), rtol=1e-9, atol=1e-12)


def test_drawn_labels_are_those_of_the_dense_inverse() -> None:
    x, y = torch.randn(1, 4, dtype=float64), torch.randint(3, (1,))
    model = nn.Linear(4, 3, dtype=float64)
    options = {"curvature": "ggn_mc", "draws": 2, "damping": ALPHA}
    full, kfac = (
        pk.statistics(model, [(x, y)], pk.Statistic(name, **options))[name]["weight"]
        for name in ("inverse_full", "inverse_kfac")
    )
    torch.testing.assert_close(kfac, full, rtol=1e-9, atol=0)


def test_the_traces_multiply_to_the_exact_trace_where_inputs_and_gradients_are_independent() -> None:
    """Inputs of ±1 have one length, whatever comes back."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    x, y = torch.randn(30, 6, dtype=float64).sign(), torch.randint(4, (30,))
    found = pk.statistics(model, [(x, y)], ["inverse_kfac", "ggn_diagonal"], parameters=["0.*"])
    weight, bias = found["inverse_kfac"].families
    product = weight.inputs[0].trace() * weight.outputs[0].trace()
    assert float(product) == pytest.approx(float(found["ggn_diagonal"]["0.weight"].sum()), rel=1e-10)
    # A bias's input is 1 at every example: its diagonal is exact.
    torch.testing.assert_close(bias.outputs[0].diagonal(), found["ggn_diagonal"]["0.bias"])
    assert float(bias.inputs) == 1


@pytest.mark.parametrize("selection", ["greedy", "saliency"])
def test_a_linear_layer_with_several_outputs_and_squared_errors_is_exact(selection) -> None:
    x = torch.randn(40, 6, dtype=float64) @ torch.randn(6, 6, dtype=float64)
    y = torch.randn(40, 3, dtype=float64)
    weights, masks, predicted = [], [], []
    for name in ("obs", "obs_kfac"):
        torch.manual_seed(1)
        model = nn.Linear(6, 3, bias=False, dtype=float64)
        criterion = {"name": name, "damping": ALPHA, "selection": selection}
        pruning = pk.prune(model, [(x, y)], criterion, sparsity=0.6, steps=2, loss="mse")
        weights.append(model.weight.detach())
        masks.append(pruning.masks["weight"])
        predicted.append([s.predicted_delta_loss for s in pruning.steps])
    assert torch.equal(*masks)
    torch.testing.assert_close(*weights, rtol=1e-8, atol=1e-9)
    assert predicted[1] == pytest.approx(predicted[0], rel=1e-8)
    requests = [pk.Statistic(name, damping=ALPHA) for name in ("inverse_full", "inverse_kfac")]
    full, kfac = pk.statistics(model, [(x, y)], requests, loss="mse").values()
    torch.testing.assert_close(kfac["weight"], full["weight"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("network", [awkward, mlp])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(("before", "after"), [(0.0, 0.2), (0.3, 0.5), (0.3, 0.9)])
def test_the_update_is_the_minimum_over_the_whole_layer(network, gradient, before, after) -> None:
    model, batches = network()
    masks = random_masks(model, before)
    kept = flat(masks)
    statistics = estimate(model, batches, masks, curvature="ggn", draws=1)
    weights = {n: model.get_parameter(n).detach() for n in masks}
    proposed = {n: m & (torch.rand(m.shape) >= after) for n, m in masks.items()}
    left = flat(proposed)
    options = {"name": "obs_kfac", "damping": ALPHA, "gradient": gradient}
    criterion: pk.Criterion = component("criterion", options)
    blocks = statistics["inverse_kfac"]
    matrix = sum(dense(family, len(kept)) for family in blocks.families)
    damped = matrix + ALPHA * torch.eye(len(kept), dtype=float64)
    theta = flat(weights)
    slope = flat(statistics["gradient"]) if gradient else torch.zeros_like(theta)
    # ½ΔᵀHΔ + gᵀΔ with Δ = −θ at what is pruned, stationary in the rest.
    change = -theta
    change[left] = torch.linalg.solve(
        damped[left][:, left], -slope[left] + damped[left][:, ~left] @ theta[~left]
    )
    found = flat(criterion.update(weights, statistics, proposed))
    torch.testing.assert_close(found[left], (theta + change)[left], rtol=1e-7, atol=1e-8)
    expected = float(slope @ change + 0.5 * change @ matrix @ change)
    assert criterion.predicted_delta_loss(weights, statistics, proposed) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_with_the_gradient_a_cost_is_counted_from_the_minimum_of_the_whole_layer(share) -> None:
    model, batches = mlp()
    masks = random_masks(model, share)
    kept = flat(masks)
    statistics = estimate(model, batches, masks, curvature="ggn", draws=1)
    weights = {n: model.get_parameter(n).detach() for n in masks}
    options = {"name": "obs_kfac", "damping": ALPHA, "gradient": True}
    criterion: pk.Criterion = component("criterion", options)
    blocks = statistics["inverse_kfac"]
    damped = sum(dense(f, len(kept)) for f in blocks.families) + ALPHA * torch.eye(len(kept), dtype=float64)
    minimum = flat(weights)
    minimum[kept] -= torch.linalg.solve(damped[kept][:, kept], flat(statistics["gradient"])[kept])
    expected = (minimum.square() / (2 * flat(blocks)))[kept]
    found = flat(criterion.saliency(weights, statistics))[kept]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    if not share:  # then the block's inverse is the unit's part of the whole inverse: so is the cost
        torch.testing.assert_close(expected, minimum.square() / (2 * torch.linalg.inv(damped).diagonal()))


def test_the_update_lowers_the_loss_against_none_on_a_trained_network() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    x = torch.randn(200, 6, dtype=float64)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0.5).long()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    trained = {k: v.clone() for k, v in model.state_dict().items()}
    losses = []
    for update in (True, False):
        model.load_state_dict(trained)
        criterion = {"name": "obs_kfac", "update": update, "damping": 1e-3}
        pk.prune(model, [(x, y)], criterion, sparsity=0.4, steps=4)
        losses.append(float(F.cross_entropy(model(x), y).detach()))
    assert losses[0] < 0.8 * losses[1]


def test_conjugate_gradients_solve_and_say_when_they_do_not() -> None:
    x = torch.randn(30, 40, dtype=float64)
    matrix, wanted = x @ x.t() / 40 + 1e-3 * torch.eye(30, dtype=float64), torch.randn(30, dtype=float64)
    found, residual, products = solved(matrix.mv, torch.clone, wanted, 1e-10, 500)
    assert residual <= 1e-10
    assert products <= 200
    torch.testing.assert_close(found, torch.linalg.solve(matrix, wanted), rtol=1e-6, atol=1e-8)
    assert float((matrix @ found - wanted).norm() / wanted.norm()) <= 1e-10
    _, residual, products = solved(matrix.mv, torch.clone, wanted, 1e-10, 5)
    assert residual > 1e-10
    assert products == 5
    zero, residual, products = solved(matrix.mv, torch.clone, torch.zeros(30, dtype=float64), 1e-10, 5)
    assert (residual, products) == (0.0, 0)
    assert not bool(zero.any())
    _, residual, _ = solved(lambda v: v * torch.nan, torch.clone, wanted, 1e-10, 500)
    assert not residual <= 1e-10


def test_an_update_that_does_not_converge_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(obs_kfac, "_MOST_PRODUCTS", 2)
    model, batches = mlp()
    with pytest.raises(
        pk.RunError,
        match=r"conjugate gradients for 0\.weight did not converge.* after 2 products.*raise damping",
    ):
        pk.prune(model, batches, "obs_kfac", sparsity=0.3, steps=1)


def test_what_has_no_factors_is_refused_by_name() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.norm(x))
            return out

    batch = torch.randn(5, 4), torch.randint(3, (5,))
    with pytest.raises(
        pk.UnsupportedError,
        match=r"inverse_kfac: norm\.weight, norm\.bias does more than multiply inputs.*exclude it",
    ):
        pk.statistics(Odd(), [batch], "inverse_kfac", parameters="all")
    for kind in ("statistic", "criterion"):
        name = "inverse_kfac" if kind == "statistic" else "obs_kfac"
        with pytest.raises(pk.SpecError, match="'ggn', 'ggn_mc' or 'empirical_fisher'"):
            component(kind, {"name": name, "curvature": "hessian"})


def test_a_product_without_an_inverse_is_refused() -> None:
    model, batches = mlp()
    request = pk.Statistic("inverse_kfac", damping=0.0)
    # The classes' logits may all move together: G of the last layer has an eigenvalue of zero.
    with pytest.raises(pk.UnsupportedError, match=r"2\.weight is singular .* 0 and 1 eigen.*must be above 0"):
        pk.statistics(model, batches, request, parameters=["2.weight"])


def test_factors_that_do_not_fit_are_refused_before_anything_runs() -> None:
    model = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 5))

    def never() -> Any:
        raise AssertionError

    with pytest.raises(pk.UnsupportedError, match=r"0\.weight \(300 inputs, 200 outputs\).* of 114 inputs"):
        pk.prune(model, never, "obs_kfac", sparsity=0.5, steps=1, memory=1 << 20)
    model = nn.Linear(114, 114)
    batch = torch.randn(4, 114), torch.randint(114, (4,))
    options = {"name": "obs_kfac", "curvature": "empirical_fisher"}
    pk.prune(model, [batch], options, sparsity=0.5, steps=1, memory=1 << 20)


def test_a_layer_that_no_example_uses_has_no_curvature() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.other = nn.Linear(4, 3), nn.Conv2d(2, 3, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(x)
            return out

    batch = torch.randn(5, 4), torch.randint(3, (5,))
    request = pk.Statistic("inverse_kfac", damping=0.5)
    found = pk.statistics(Unused(), [batch], request)["inverse_kfac"]
    assert torch.equal(found["other.weight"], torch.full((3, 2, 2, 2), 2.0, dtype=float64))
