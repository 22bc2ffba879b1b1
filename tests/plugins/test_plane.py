"""Planes of the loss: every point is the loss there, and directions are what they say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import torch
import torch.nn.functional as F
from oracle import Oracle
from torch import Tensor, nn
from torch.func import functional_call

import prunekit as pk
from prunekit.testing import ProbeContract
from prunekit_plugins._landscape import directions
from prunekit_plugins.probes.plane import Plane


class TestPlane(ProbeContract):
    @pytest.fixture(params=["random", "eigenvectors"])
    def probe(self, request: pytest.FixtureRequest) -> Plane:
        return Plane(directions=request.param, points=3, operator="ggn")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 5, bias=False), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(torch.tanh(self.first(x))))


NETWORKS: dict[str, Any] = {
    "batch normalised": lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)),
    "tied": Tied,
    "transposed": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.ConvTranspose1d(1, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)
    ),
}


class Remembered(Plane):
    """Keeps the plane that it has measured."""

    name = "remembered"

    def _place(self, *arguments: Any) -> directions.Plane:
        self.place: directions.Plane = super()._place(*arguments)
        return self.place


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(20, 5, dtype=torch.float64), torch.randint(3, (20,))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["random", "eigenvectors"])
def test_every_point_is_the_loss_of_the_network_there(network: str, kind: str) -> None:
    model = NETWORKS[network]().double()
    x, y = batch()
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    masks = {name: torch.rand(p.shape) > 0.3 for name, p in weights.items()}
    before = copy.deepcopy(model.state_dict())
    probe = Remembered(directions=kind, points=4, operator="ggn")
    found = pk.probe(model, [(x[:7], y[:7]), (x[7:], y[7:])], probe, masks)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    first, second = probe.place.directions
    assert set(first) | set(second) <= set(weights)
    for name in weights:
        assert not first[name][~masks[name]].any()
        assert not second[name][~masks[name]].any()
    model.eval()
    for i, b in enumerate(found["plane/y"]):
        for j, a in enumerate(found["plane/x"]):
            moved = {n: p * masks[n] + a * first[n] + b * second[n] for n, p in weights.items()}
            expected = F.cross_entropy(functional_call(model, moved, (x,)), y).item()
            assert found["plane/train_loss"][i, j] == pytest.approx(expected, abs=1e-12)


def test_random_directions_are_as_large_as_the_filters_of_the_network() -> None:
    model = NETWORKS["transposed"]().double()
    norms = {}
    for normalise in ("filter", "layer", "none"):
        probe = Remembered(points=2, normalise=normalise)
        pk.probe(model, [batch()], probe)
        norms[normalise] = probe.place.directions
    for first in norms["filter"]:
        # Outputs of a transposed convolution are on its second axis.
        for name, axes in (("1.weight", (0, 2)), ("4.weight", (1,))):
            own = model.get_parameter(name).detach().square().sum(axes)
            torch.testing.assert_close(first[name].square().sum(axes), own)
    for first in norms["layer"]:
        torch.testing.assert_close(first["4.weight"].norm(), model[4].weight.detach().norm())
        assert (first["4.weight"].norm(dim=1) - model[4].weight.detach().norm(dim=1)).abs().max() > 1e-3
    spread = torch.cat([value.flatten() for value in norms["none"][0].values()]).std()
    assert 0.7 < spread < 1.3


def test_eigenvectors_are_as_long_as_the_quadratic_model_changes_the_loss_by_one() -> None:
    model = NETWORKS["tied"]().double()
    x, y = batch()
    probe = Remembered(directions="eigenvectors", points=2, operator="ggn")
    found = pk.probe(model, [(x, y)], probe)
    assert found["networks/x"].tolist() == [0.0]
    names = ["first.weight", "last.weight"]
    dense = Oracle(model.eval(), x, y, names).ggn()
    a, b = (torch.cat([v[name].flatten() for name in names]) for v in probe.place.directions)
    assert (a @ dense @ a / 2).item() == pytest.approx(1, rel=1e-3)
    assert (b @ dense @ b / 2).item() == pytest.approx(1, rel=1e-3)
    assert (a @ dense @ b).item() == pytest.approx(0, abs=1e-2)
    np.testing.assert_allclose(probe.place.curvature, torch.linalg.eigvalsh(dense).flip(0)[:2], rtol=1e-6)


class Breaks(nn.Module):
    """Has no finite loss where its weights are large."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 3).double()
        self.limit = 1.2 * float(self.inner.weight.detach().norm())

    def forward(self, x: Tensor) -> Tensor:
        size = self.inner.weight.norm()
        return self.inner(x) * torch.where(size > self.limit, torch.inf, 1.0)


def test_where_the_loss_is_not_finite_there_is_none() -> None:
    found = pk.probe(Breaks(), [batch()], {"name": "plane", "points": 5})
    values = found["plane/train_loss"]
    assert np.isnan(values[0, 0])
    assert np.isfinite(values[2, 2])


def test_a_run_has_its_networks_in_the_plane_and_is_not_changed(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    probes = [
        {"name": "plane", "directions": "path", "points": 5, "examples": None},
        {"name": "plane", "label": "steps", "directions": "step", "points": 3, "moments": "step"},
        {"name": "plane", "label": "around", "points": 3, "moments": ["dense", "pruned"]},
    ]
    spec = running.mapping(tmp_path, probes=probes)
    plain = pk.run({**spec, "probes": []}, tmp_path / "plain.h5")
    results = pk.run(spec, tmp_path / "run.h5")
    for phase in ("dense", "pruned", "finetuned"):
        assert results.summary[phase] == plain.summary[phase]
    networks = results.probe("plane")["networks"]
    assert networks["x"][:2].tolist() == [0, 1]
    assert networks["y"].tolist() == [0, 0, 1]
    for loss, phase in zip(networks["train_loss"], ("dense", "pruned", "finetuned"), strict=True):
        assert loss == pytest.approx(results.summary[phase]["train_loss"], abs=1e-5)
    steps = results.probe("steps")["networks"]["train_loss"]
    for (before, after), row in zip(steps, results.summary["steps"], strict=True):
        assert after - before == pytest.approx(row["delta_loss"], abs=1e-6)
    assert results.probe("around", "pruned")["plane"]["valid_loss"].shape == (3, 3)
    for label in ("plane", "steps", "around"):
        assert (
            running.cli("inspect", results.path, "--plot", tmp_path / f"{label}.png", "--figure", label)[0]
            == 0
        )
    results.close()
    plain.close()


def test_what_a_moment_does_not_have_is_refused_with_what_would_do() -> None:
    model = NETWORKS["tied"]().double()
    with pytest.raises(
        pk.UnsupportedError, match="path takes the dense, the pruned and the fine-tuned network"
    ):
        pk.probe(model, [batch()], {"name": "plane", "directions": "path"})
    with pytest.raises(pk.SpecError, match="'plane' measures what a step does"):
        pk.probe(model, [batch()], {"name": "plane", "directions": "step"})
