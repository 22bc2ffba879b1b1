"""The layers probe: counts by hand, dead units, collapse, and null where nobody knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import torch
from torch import nn

import prunekit as pk
from prunekit.data import Split, Splits
from prunekit.observing.moment import Moment, Surroundings
from prunekit.plugins.build import as_loss, component, estimators, ranking
from prunekit.seeds import generator
from prunekit.testing import ProbeContract
from prunekit_plugins.probes.layers import QUANTILES, Layers


class TestLayers(ProbeContract):
    @pytest.fixture
    def probe(self) -> Layers:
        return Layers()


class TestLayersByAnotherCriterion(ProbeContract):
    @pytest.fixture
    def probe(self) -> Layers:
        return Layers(criterion={"name": "qm", "lambda": 0.1})


def record(model: nn.Module, x: Any, y: Any, masks: dict[str, Any], **options: Any) -> pk.ProbeRecord:
    pk.apply_masks(model, masks)
    around = Surroundings(model, as_loss("cross_entropy"), estimators, Splits(Split(x, y)), ranking=ranking)
    probe: pk.Probe = component("probe", {"name": "layers", **options})
    return probe.measure(Moment("dense", around, masks), generator(0, "probe"))


def kept(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.ones_like(p).bool() for name, p in model.named_parameters() if p.ndim > 1}


def test_sparsities_quantiles_and_units_are_those_counted_by_hand() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1.0, 13.0).view(4, 3) / 12)
        model[0].bias.fill_(0.5)
        model[0].bias[2] = -100.0  # dead, though it has inputs and outputs
    masks = kept(model)
    masks["0.weight"][1] = False  # no input
    masks["2.weight"][:, 3] = False  # no output
    x, y = torch.rand(10, 3, dtype=torch.float64), torch.randint(2, (10,))
    summary = record(model, x, y, masks).summary
    first, second = summary["layers"]["0.weight"], summary["layers"]["2.weight"]
    assert (first["weights"], first["kept"], first["sparsity"]) == (12, 9, 0.25)
    assert first["effective_sparsity"] == 0.5  # the fourth unit's weights lead nowhere
    assert (first["units"], first["units_without_input"], first["units_without_output"]) == (4, 1, 1)
    assert first["dead_units"] == 2  # the third and the one that nobody listens to; the second has a bias
    assert second["effective_sparsity"] == 0.5
    assert (second["kept"], second["dead_units"]) == (6, 0)
    values = model[0].weight.detach()[masks["0.weight"]].square().numpy() / 2
    assert first["saliency"] == pytest.approx(np.quantile(values, QUANTILES).tolist())
    assert summary["sparsity"] == pytest.approx(5 / 20)
    assert summary["effective_sparsity"] == pytest.approx(10 / 20)
    assert summary["collapsed"] == []
    assert "reasons" not in summary


def test_channels_are_units_of_convolutions_whatever_their_direction() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2), nn.Flatten(), nn.Linear(75, 2)
    ).double()  # fmt: skip
    masks = kept(model)
    masks["0.weight"][1] = False
    masks["3.weight"][2] = False  # what would hear the third channel
    x, y = torch.randn(6, 2, 6, 6, dtype=torch.float64), torch.randint(2, (6,))
    layers = record(model, x, y, masks).summary["layers"]
    assert [layers[name]["units"] for name in masks] == [4, 3, 2]
    assert (layers["0.weight"]["units_without_input"], layers["0.weight"]["units_without_output"]) == (1, 1)
    assert layers["3.weight"]["units_without_input"] == 0
    assert layers["0.weight"]["effective_sparsity"] == 0.5


def test_a_layer_that_collapses_is_warned_of_and_so_is_one_that_nothing_reaches() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    masks = kept(model)
    masks["2.weight"][:] = False
    x, y = torch.randn(5, 3), torch.randint(2, (5,))
    with pytest.warns(pk.PrunekitWarning, match=r"0\.weight, 2\.weight, 4\.weight have collapsed"):
        found = record(model, x, y, masks)
    assert found.summary["collapsed"] == ["0.weight", "2.weight", "4.weight"]
    assert found.summary["layers"]["2.weight"]["saliency"] == [None] * len(QUANTILES)


def test_what_is_not_known_of_a_network_is_null_with_its_reason() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.einsum("ni,oi->no", x, self.layer.weight).tanh())

    model = Own()
    summary = record(
        model, torch.randn(5, 4), torch.randint(2, (5,)), kept(model), criterion="synflow"
    ).summary
    assert summary["effective_sparsity"] is None
    first = summary["layers"]["layer.weight"]
    assert (first["effective_sparsity"], first["units_without_output"]) == (None, None)
    assert (first["sparsity"], first["dead_units"]) == (0.0, 0)
    assert "einsum" in summary["reasons"]["paths"]
    assert summary["collapsed"] == []


@pytest.mark.filterwarnings("ignore:probe 'layers'")
def test_a_run_with_it_is_the_run_without_it(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    probe = {"name": "layers", "moments": ["dense", "step"]}
    for name, probes in (("with", [probe]), ("without", [])):
        pk.run(running.mapping(tmp_path, probes=probes), tmp_path / f"{name}.h5").close()
    one, other = (running.contents(tmp_path / f"{name}.h5") for name in ("with", "without"))
    for key in ("masks/gone", "steps/delta_loss", "examples/indices", "weights/finetuned/fc.0.weight"):
        assert one[key] == other[key]
    with pk.open(tmp_path / "with.h5") as results:
        found = results.probe("layers", "step")["layers"]
        own = [list(step["layers"].values()) for step in results.summary["steps"]]
        np.testing.assert_allclose(found["sparsity"], own)
        assert (found["effective_sparsity"] >= found["sparsity"]).all()
        assert results.summary["probes"]["layers"]["dense"]["sparsity"] == 0.0


@pytest.mark.filterwarnings("ignore:probe 'layers'")
def test_it_and_the_oracle_can_be_asked_in_pruning_a_model_of_ones_own() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    batches = [(torch.randn(40, 8), torch.randint(3, (40,)))]
    oracle = {"name": "oracle", "moments": "step", "resamples": 5}
    pruning = pk.prune(model, batches, "qm", sparsity=0.6, steps=2, probes=["layers", oracle])
    rows = pruning.probes["layers"]["steps"]
    assert [row["sparsity"] for row in rows] == pytest.approx([step.sparsity for step in pruning.steps])
    assert [row["kept"] for row in pruning.probes["oracle"]["steps"]] == [s.remaining for s in pruning.steps]


def test_it_can_be_asked_about_a_model_of_ones_own() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    found = pk.probe(model, [(torch.randn(8, 4), torch.randint(3, (8,)))], "layers")
    assert found["units"].tolist() == [5, 3]
    assert found["layers/effective_sparsity"].tolist() == [0, 0]
