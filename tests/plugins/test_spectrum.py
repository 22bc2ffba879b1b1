"""Spectra: Lanczos and quadrature against dense eigenvalues, and the probe against dense matrices of networks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import running
import torch
from oracle import Oracle
from torch import Tensor, nn

import prunekit as pk
from prunekit.testing import ProbeContract
from prunekit_plugins._landscape.spectrum import density
from prunekit_plugins._linalg.lanczos import Krylov, extreme, quadrature
from prunekit_plugins.probes.spectrum import Spectrum


class TestSpectrum(ProbeContract):
    @pytest.fixture(
        params=[{}, {"operator": "ggn", "per_layer": True, "density": None}], ids=["whole", "layers"]
    )
    def probe(self, request: pytest.FixtureRequest) -> Spectrum:
        return Spectrum(**request.param)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def symmetric(values: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """A dense matrix with these eigenvalues."""
    wanted = torch.as_tensor(np.array(values, dtype=float))
    turn = torch.linalg.qr(torch.randn(len(wanted), len(wanted), generator=generator(), dtype=torch.float64))[
        0
    ]
    return ((turn * wanted) @ turn.T).to(dtype)


SPECTRA = {
    "spread": np.linspace(-3, 7, 60) ** 3,
    "repeated at both ends": [5, 5, 5, 4, 3] + [0] * 40 + [-1, -2, -2],
    "a cluster": [*np.linspace(-1, 1, 60), 10, 10 + 1e-6, 10 + 2e-6],
    "zero": [0.0] * 20,
    "the identity": [1.0] * 9,
    "one": [3.0],
    "mostly zero": [0.0] * 90 + [1e-3, 1.0, 2.0],
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_ends_are_the_dense_eigenvalues_as_often_as_they_occur(name: str, dtype: torch.dtype) -> None:
    matrix = symmetric(SPECTRA[name], dtype)
    double = dtype == torch.float64
    high, low = extreme(lambda x: matrix @ x, matrix[0], 4, 3, 200, 1e-10 if double else 1e-6, generator(1))
    dense = np.linalg.eigvalsh(matrix.double().numpy())
    room = max(abs(dense).max(), 1e-300) * (1e-9 if double else 3e-5)
    for found, expected in ((high, dense[::-1][:4]), (low, dense[:3])):
        assert len(found.values) == len(expected)
        np.testing.assert_allclose(found.values, expected, rtol=0, atol=room)
        assert (found.residuals <= room).all()
        overlap = (found.vectors @ found.vectors.T).double()
        torch.testing.assert_close(overlap, torch.eye(len(overlap), dtype=torch.float64), rtol=0, atol=1e-4)


def test_too_few_products_are_told_by_residuals_within_which_an_eigenvalue_lies() -> None:
    matrix = symmetric(np.linspace(0, 1, 300))
    dense = np.linalg.eigvalsh(matrix.numpy())
    high, low = extreme(lambda x: matrix @ x, matrix[0], 3, 3, 12, 1e-12, generator())
    assert high.residuals.max() > 1e-4
    for found in (high, low):
        for value, residual in zip(found.values, found.residuals, strict=True):
            assert np.abs(dense - value).min() <= residual + 1e-14


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_basis_is_orthonormal_to_rounding_and_the_matrix_in_it_is_what_is_said(
    name: str, dtype: torch.dtype
) -> None:
    matrix = symmetric(SPECTRA[name], dtype)
    room = min(len(matrix), 40)
    apart = torch.eye(len(matrix), dtype=dtype)[:2] if len(matrix) > 10 else None
    space = Krylov(lambda x: matrix @ x, torch.ones(len(matrix), dtype=dtype), generator(), room, apart)
    while not space.complete:
        space.grow()
    basis = space.basis[: space.count].double()
    eps = torch.finfo(dtype).eps
    one = torch.eye(space.count, dtype=torch.float64)
    torch.testing.assert_close(basis @ basis.T, one, rtol=0, atol=100 * eps)
    if apart is not None:
        assert (basis @ apart.double().T).abs().max() < 100 * eps
    values, _, _ = space.ritz()
    scale = max(matrix.double().abs().max().item(), 1e-300)
    inside = torch.linalg.eigvalsh(basis @ matrix.double() @ basis.T)
    np.testing.assert_allclose(values, inside.numpy(), rtol=0, atol=1000 * eps * scale)


def test_a_product_may_return_what_it_was_given_and_memory_may_hold_anything() -> None:
    start = torch.randn(50, dtype=torch.float64, generator=generator())
    nodes, weights = quadrature(lambda x: x, start, 5, generator())
    np.testing.assert_allclose((nodes, weights), ([1.0], [1.0]))
    matrix = symmetric(SPECTRA["spread"])
    start, before = start.new_ones(len(matrix)), start.new_ones(len(matrix))
    used = start.new_full((11, len(matrix)), torch.nan)
    own = quadrature(lambda x: matrix @ x, start, 10, generator())
    for _ in range(2):
        given = quadrature(lambda x: matrix @ x, start, 10, generator(), used)
        assert np.array_equal(given, own)
    assert torch.equal(start, before)


@pytest.mark.parametrize("seed", range(5))
def test_the_density_integrates_to_the_trace_within_its_error(seed: int) -> None:
    matrix = symmetric(SPECTRA["repeated at both ends"])
    found = density(lambda x: matrix @ x, matrix[0], 20, 60, 0.0, generator(seed))
    trace, error = found.trace()
    assert abs(trace - matrix.trace().item()) < 4 * error
    values, heights, _ = found.smooth(300)
    step = values[1] - values[0]
    assert heights.sum() * step == pytest.approx(1, abs=1e-9)
    assert len(matrix) * (values * heights).sum() * step == pytest.approx(trace, abs=1e-9)
    # Enough nodes for a spectrum of seven values: every moment of the first vector is exact.
    signs = torch.randint(2, (len(matrix),), generator=generator(seed)).double() * 2 - 1
    exact = ((matrix @ signs) ** 2).sum().item()
    assert len(matrix) * np.nansum(found.nodes[0] ** 2 * found.weights[0]) == pytest.approx(exact)


def test_vectors_are_drawn_until_the_trace_is_known() -> None:
    matrix = symmetric(SPECTRA["spread"])
    loose, tight, all_ = (
        len(density(lambda x: matrix @ x, matrix[0], 30, 200, tolerance, generator()).nodes)
        for tolerance in (0.5, 0.02, 0.0)
    )
    assert loose == 3
    assert 3 < tight < 200
    assert all_ == 200


# -- networks --------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 5, bias=False), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(torch.tanh(self.first(x))))


NETWORKS = {
    "perceptron": lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)),
    "batch normalised": lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)),
    "tied": Tied,
    "strides and groups": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 2, stride=2), nn.Tanh(), nn.Conv1d(4, 4, 2, groups=2),
        nn.Flatten(), nn.Linear(4, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_probe_finds_the_dense_eigenvalues_over_the_weights_that_are_kept(
    network: str, operator: str, masked: bool
) -> None:
    model = NETWORKS[network]().double()
    x, y = torch.randn(30, 5, dtype=torch.float64), torch.randint(3, (30,))
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    masks = {
        name: torch.rand(p.shape) > 0.4 if masked else torch.ones_like(p, dtype=torch.bool)
        for name, p in weights.items()
    }
    before = copy.deepcopy(model.state_dict())
    options = {"name": "spectrum", "operator": operator, "eigenvalues": 4, "smallest": 2, "tolerance": 1e-9}
    found = pk.probe(
        model, [(x[:11], y[:11]), (x[11:], y[11:])], {**options, "per_layer": True}, masks if masked else None
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    pruned = copy.deepcopy(model).eval()
    pk.apply_masks(pruned, masks)
    dense = Oracle(pruned, x, y, list(weights)).matrices()[operator]()
    kept = torch.cat([masks[name].flatten() for name in weights])
    expected = torch.linalg.eigvalsh(dense[kept][:, kept]).numpy()
    np.testing.assert_allclose(found["spectrum/eigenvalues"], expected[::-1][:4], rtol=0, atol=1e-8)
    np.testing.assert_allclose(found["spectrum/smallest"], expected[:2], rtol=0, atol=1e-8)
    assert abs(found["spectrum/trace"] - expected.sum()) <= 6 * found["spectrum/trace_error"] + 1e-9
    start = 0
    for place, name in enumerate(weights):
        part = slice(start, start := start + masks[name].numel())
        own = kept[part]
        block = torch.linalg.eigvalsh(dense[part, part][own][:, own]).numpy()
        few = min(4, len(block))
        np.testing.assert_allclose(
            found["layers/eigenvalues"][place][:few], block[::-1][:few], rtol=0, atol=1e-8
        )
        assert np.isnan(found["layers/eigenvalues"][place][few:]).all()


def test_a_layer_of_which_nothing_is_left_has_no_spectrum() -> None:
    model = NETWORKS["perceptron"]().double()
    batch = torch.randn(9, 5, dtype=torch.float64), torch.randint(3, (9,))
    masks = {"0.weight": torch.zeros(6, 5, dtype=torch.bool)}
    found = pk.probe(model, [batch], {"name": "spectrum", "per_layer": True}, masks)
    assert np.isnan(found["layers/eigenvalues"][0]).all()
    assert found["layers/trace"][0] == 0
    assert np.isfinite(found["layers/eigenvalues"][1]).all()


def test_all_batches_count_outside_a_run_unless_examples_are_asked_for() -> None:
    model = nn.Linear(4, 3)
    x, y = torch.randn(1200, 4), torch.randint(3, (1200,))
    options = {"name": "spectrum", "density": None, "operator": "ggn"}
    whole = pk.probe(model, [(x, y)], options)["eigenvalues"]
    first = pk.probe(model, [(x[:1000], y[:1000])], options)["eigenvalues"]
    asked = pk.probe(model, [(x, y)], {**options, "examples": 1000})["eigenvalues"]
    assert np.array_equal(first, asked)
    assert not np.array_equal(first, whole)


def test_a_run_records_it_at_its_moments_and_changes_nothing(tmp_path: Path) -> None:
    probes = [
        {"name": "spectrum", "moments": ["dense", "pruned"], "density": {"vectors": 3, "iterations": 10}},
        {"name": "spectrum", "label": "steps", "moments": "step", "density": None},
    ]
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, probes=probes)
    with (
        pk.run(spec, tmp_path / "with.h5") as results,
        pk.run({**spec, "probes": []}, tmp_path / "without.h5") as other,
    ):
        assert results.summary["steps"] == [
            {**row, "seconds": mine["seconds"]}
            for row, mine in zip(other.summary["steps"], results.summary["steps"], strict=True)
        ]
        last = results.summary["steps"][-1]
        assert results.summary["probes"]["spectrum"]["pruned"]["size"] == last["remaining"]
        assert results.probe("steps")["spectrum"]["eigenvalues"].shape == (len(results.summary["steps"]), 3)
        figure_file = tmp_path / "spectrum.png"
        for label in ("spectrum", "steps"):
            assert running.cli("inspect", results.path, "--plot", figure_file, "--figure", label)[0] == 0
            figure_file.unlink()
    with h5py.File(tmp_path / "with.h5") as file:
        assert file["probes/spectrum/dense/spectrum/eigenvalues"].attrs["units"] == b"loss per squared weight"
