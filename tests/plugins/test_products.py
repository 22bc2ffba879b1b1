"""The inverse that is known by its products, against dense inverses and the published recursion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, float64, nn

import prunekit as pk
from prunekit.plugins.build import component, estimators
from prunekit.seeds import generator
from prunekit.statistics.estimate import estimate as engine
from prunekit_plugins._curvature.inverse_products import Products

ALPHA = 0.02


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The same numbers in any order of tests."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def network() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """With a norm, which has no rule of its own, and a ragged last batch."""
    model = nn.Sequential(
        nn.Conv1d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 4)
    ).double()
    x, y = torch.randn(13, 2, 4, dtype=float64), torch.randint(4, (13,))
    return model, [(x[:8], y[:8]), (x[8:], y[8:])]


def estimate(
    model: nn.Module, batches: Any, request: pk.Statistic, masks: Any, budget: int | None = None
) -> Any:
    parameters, loss = dict(model.named_parameters()), component("loss", "cross_entropy")
    found = engine(model, batches, estimators([request]), loss, parameters, generator(0), budget, masks)
    return found.statistics[request]


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.flatten() for t in tensors.values()])


def shaped(values: Tensor, like: Any) -> dict[str, Tensor]:
    parts = values.split([t.numel() for t in like.values()])
    return {n: p.view(t.shape) for (n, t), p in zip(like.items(), parts, strict=True)}


@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher"])
@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("budget", [None, 80_000])
def test_products_and_diagonal_are_those_of_the_dense_inverse(curvature, share, budget) -> None:
    """Method, identity 5."""
    model, batches = network()
    masks = {n: torch.rand(p.shape) >= share for n, p in model.named_parameters()}
    pk.apply_masks(model, masks)
    kept = flat(masks)
    operator = pk.operator(model, batches, curvature, parameters="all")
    units = torch.eye(len(kept), dtype=float64)
    matrix = torch.stack([flat(operator @ shaped(unit, masks)) for unit in units])
    expected = torch.zeros_like(matrix)
    pairs = kept.unsqueeze(1) & kept
    part = matrix[kept][:, kept]
    expected[pairs] = torch.linalg.inv(part + ALPHA * torch.eye(len(part), dtype=float64)).flatten()
    request = pk.Statistic("inverse_products", curvature=curvature, damping=ALPHA)
    found = estimate(model, batches, request, masks, budget)
    assert [t.shape for t in found.values()] == [m.shape for m in masks.values()]
    torch.testing.assert_close(flat(found), expected.diagonal(), rtol=1e-9, atol=1e-10)
    vector = torch.randn(len(kept), dtype=float64)
    for inverse in (found, found.map(torch.clone)):
        product = flat(inverse @ shaped(vector, masks))
        torch.testing.assert_close(product, expected @ vector, rtol=1e-9, atol=1e-9)
        assert not bool(product[~kept].any())
        curved = float((vector * kept) @ matrix @ (vector * kept))
        assert inverse.curved(vector) == pytest.approx(curved, rel=1e-9)


def test_the_map_of_an_inverse_is_a_copy() -> None:
    model, batches = network()
    found = pk.statistics(model, batches, "inverse_products")["inverse_products"]
    copied = found.map(torch.clone)
    vector = {n: torch.ones_like(t) for n, t in found.items()}
    before = flat(copied @ vector)
    for tensor in (*found.rows, found.factor, found.kept):
        tensor.zero_()
    assert torch.equal(flat(copied @ vector), before)


def test_the_published_recursion_gives_the_same() -> None:
    """M-FAC, section 3: one gradient after another, each with its product with the inverse of those before."""
    model, batches = network()
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    weights = dict(model.named_parameters())
    gradients = []
    for i in range(len(x)):
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        slopes = torch.autograd.grad(loss, list(weights.values()))
        gradients.append(torch.cat([g.flatten() for g in slopes]))
    m = len(x)

    def product(vector: Tensor, so_far: list[tuple[Tensor, Tensor]]) -> Tensor:
        result = vector / ALPHA
        for g, moved in so_far:
            result = result - moved * (moved @ vector) / (m + g @ moved)
        return result

    so_far: list[tuple[Tensor, Tensor]] = []
    for g in gradients:
        so_far.append((g, product(g, so_far)))
    request = pk.Statistic("inverse_products", curvature="empirical_fisher", damping=ALPHA)
    found = pk.statistics(model, batches, request, parameters="all")["inverse_products"]
    vector = torch.randn(len(gradients[0]), dtype=float64)
    torch.testing.assert_close(
        flat(found @ shaped(vector, weights)), product(vector, so_far), rtol=1e-9, atol=1e-9
    )


def test_drawn_labels_are_those_of_the_dense_inverse() -> None:
    model, batches = network()
    options = {"curvature": "ggn_mc", "draws": 3, "damping": ALPHA}
    full, products = (
        pk.statistics(model, batches, pk.Statistic(name, **options))[name]
        for name in ("inverse_full", "inverse_products")
    )
    torch.testing.assert_close(flat(products), flat(full), rtol=1e-9, atol=1e-9)


def test_vectors_are_stored_in_the_weights_dtype_and_multiplied_in_float64() -> None:
    model, batches = network()
    exact = pk.statistics(model, batches, pk.Statistic("inverse_products", damping=ALPHA))
    model = model.float()
    single = [(x.float(), y) for x, y in batches]
    request = pk.Statistic("inverse_products", damping=ALPHA)
    found = pk.statistics(model, single, request)["inverse_products"]
    assert {part.dtype for part in found.rows} == {torch.float32}
    assert found.factor.dtype == float64
    torch.testing.assert_close(flat(found), flat(exact["inverse_products"]), rtol=1e-4, atol=1e-4)
    vector = {n: torch.ones(t.shape) for n, t in found.items()}
    assert {t.dtype for t in (found @ vector).values()} == {torch.float32}


def test_what_does_not_fit_is_refused_with_the_examples_that_would() -> None:
    model = nn.Linear(100, 4)
    x, y = torch.randn(300, 100), torch.randint(4, (300,))
    data = [(x[:150], y[:150]), (x[150:], y[150:])]
    request = pk.Statistic("inverse_products")
    with pytest.raises(
        pk.UnsupportedError,
        match=r"150 examples \(and maybe more\) with 3 vectors each .*enough for 54 examples",
    ):
        pk.statistics(model, data, request, memory=3 << 18)
    pk.statistics(model, [(x[:54], y[:54])], request, memory=3 << 18)
    drawn = pk.Statistic("inverse_products", curvature="ggn_mc")
    pk.statistics(model, data[:1], drawn, memory=3 << 18)
    with pytest.raises(pk.UnsupportedError, match="one vector over 400 kept weights"):
        pk.statistics(model, data, request, memory=1600)


def test_damping_is_above_zero_and_the_hessian_is_refused() -> None:
    with pytest.raises(pk.SpecError, match="greater than 0"):
        component("statistic", {"name": "inverse_products", "damping": 0.0})
    with pytest.raises(pk.SpecError, match="'ggn', 'ggn_mc' or 'empirical_fisher'"):
        component("statistic", {"name": "inverse_products", "curvature": "hessian"})


def test_a_damping_that_rounding_loses_is_refused() -> None:
    rows = torch.ones(3, 2, dtype=float64) * 1e8
    with pytest.raises(pk.UnsupportedError, match="lost in rounding beside 3 vectors"):
        Products({"w": torch.Size([2])}, [rows], torch.arange(2), 3.0, 1e-6, 1 << 20)


def test_vectors_of_other_names_or_shapes_are_refused() -> None:
    model, batches = network()
    found = pk.statistics(model, batches, "inverse_products")["inverse_products"]
    vector = {n: torch.zeros_like(t) for n, t in found.items()}
    name = next(iter(vector))
    for wrong in ({**vector, "more": torch.zeros(1)}, {}, {**vector, name: torch.zeros(1)}):
        with pytest.raises(pk.SpecError, match="names and shapes are not those of the inverse"):
            found @ wrong
