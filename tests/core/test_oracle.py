"""The oracle probe: true changes of the loss, strata, and correlations with their intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import scipy.stats
import torch
from torch import nn

import prunekit as pk
from prunekit.data import Split, Splits
from prunekit.observing.moment import Moment, Surroundings
from prunekit.plugins.build import as_loss, component, estimators, ranking
from prunekit.ranks import MOST_PAIRED, kendall, spearman
from prunekit.seeds import generator
from prunekit.testing import ProbeContract
from prunekit_plugins.probes.oracle import Oracle


class TestOracle(ProbeContract):
    @pytest.fixture
    def probe(self) -> Oracle:
        return Oracle(resamples=20)


class TestOracleOfSomeWeights(ProbeContract):
    @pytest.fixture
    def probe(self) -> Oracle:
        return Oracle(weights=30, resamples=20, criteria=["qm", {"name": "obs", "damping": 0.1}])


def dense(network: Any, names: list[str]) -> Moment:
    x = network.x
    masks = {name: torch.ones_like(network.model.get_parameter(name), dtype=torch.bool) for name in names}
    around = Surroundings(
        network.model, as_loss("cross_entropy"), estimators, Splits(Split(x, network.y)), ranking=ranking
    )
    return Moment("dense", around, masks)


def measured(moment: Moment, **options: Any) -> pk.ProbeRecord:
    probe: pk.Probe = component("probe", {"name": "oracle", "resamples": 20, **options})
    return probe.measure(moment, generator(0, "probe"))


def arrays(record: pk.ProbeRecord) -> dict[str, np.ndarray]:
    return {key: np.asarray(s.values) for group in record.groups.values() for key, s in group.items()}


@pytest.mark.parametrize("name", ["linear", "groups", "batch_norm", "tied_linear", "tokens_and_layer_norm"])
def test_every_weight_of_a_small_network_is_deleted_and_found_at_its_place(name: str, build: Any) -> None:
    network = build(name)
    names = [n for n, p in network.model.named_parameters() if p.ndim > 1]
    moment = dense(network, names)
    record = measured(moment, criteria=["magnitude", "qm"])
    found = arrays(record)
    total = sum(layer.size for layer in moment.layers)
    assert found["place"].tolist() == list(range(total))
    whole = moment.loss(data=moment.split("train"))
    assert record.summary["loss"] == whole
    assert (record.summary["weights"], record.summary["exhaustive"]) == (total, True)
    saliency = moment.saliency("qm", generator(0, "x"), data=moment.split("train"))
    for place in range(0, total, 5):
        layer = moment.layers[int(found["layer"][place])]
        weights = moment.weights()
        value = weights[layer.name].view(-1)
        inside = place - layer.start
        assert float(value[inside]) == found["value"][place]
        assert float(saliency[layer.name].view(-1)[inside]) == found["saliency"][1][place]
        value[inside] = 0.0
        change = moment.loss(weights, moment.split("train")) - whole
        assert found["delta_loss"][place] == pytest.approx(change, rel=1e-7, abs=1e-12)


def test_the_correlations_are_scipys_and_absolute_sizes_count_unless_told_otherwise(build: Any) -> None:
    moment = dense(build("linear"), ["0.weight", "2.weight"])
    for absolute in (True, False):
        record = measured(moment, absolute=absolute)
        found = arrays(record)
        truth = np.abs(found["delta_loss"]) if absolute else found["delta_loss"]
        for i, name in enumerate(["magnitude", "lm", "qm", "obd"]):
            assert found["spearman"][i] == pytest.approx(
                scipy.stats.spearmanr(found["saliency"][i], truth)[0]
            )
            assert found["kendall"][i] == pytest.approx(
                scipy.stats.kendalltau(found["saliency"][i], truth)[0]
            )
            assert record.summary["criteria"][name]["kendall"] == found["kendall"][i]


def test_of_many_weights_one_is_drawn_of_each_stratum_of_the_first_criterions_saliency() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3)).double()
    x, y = torch.randn(16, 20, dtype=torch.float64), torch.randint(3, (16,))
    masks = {name: p.abs() > 0.02 for name, p in model.named_parameters() if p.ndim > 1}
    pk.apply_masks(model, masks)
    around = Surroundings(model, as_loss("cross_entropy"), estimators, Splits(Split(x, y)), ranking=ranking)
    record = measured(Moment("dense", around, masks), weights=50, criteria=["magnitude"])
    found = arrays(record)
    kept = torch.cat([m.flatten() for m in masks.values()])
    order = torch.cat([p.detach().flatten().abs() for n, p in model.named_parameters() if n in masks])[kept]
    ranks = np.searchsorted(np.sort(order.numpy()), np.abs(found["value"]))
    edges = np.round(np.linspace(0, int(kept.sum()), 51))
    assert np.histogram(np.sort(ranks), edges)[0].tolist() == [1] * 50
    assert bool(kept[found["place"].astype(int)].all())
    assert record.summary["exhaustive"] is False


def test_ties_and_weighted_samples_are_those_of_samples_written_out() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 6, 40).astype(float), draw.normal(size=40)
    y[:10] = np.round(y[:10])
    for mine, theirs in ((spearman, scipy.stats.spearmanr), (kendall, scipy.stats.kendalltau)):
        counts = np.random.default_rng(7).multinomial(40, np.full(40, 1 / 40), 30)
        samples = [np.repeat(np.arange(40), one) for one in counts]
        expected = [theirs(x[some], y[some])[0] for some in samples]
        found = mine(x, y, np.random.default_rng(7), 30, 0.9)
        assert found.value == pytest.approx(theirs(x, y)[0])
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(expected, [0.05, 0.95])))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    draw = np.random.default_rng(1)
    truth, hits = 6 / np.pi * np.arcsin(0.6 / 2), 0  # of a normal pair with correlation 0.6
    for _ in range(200):
        x = draw.normal(size=150)
        y = 0.6 * x + 0.8 * draw.normal(size=150)
        found = spearman(x, y, draw, 200, 0.95)
        hits += found.low <= truth <= found.high
    assert 0.9 <= hits / 200 <= 0.99


def test_kendalls_correlation_of_many_is_that_of_some_and_what_is_all_alike_has_none() -> None:
    draw = np.random.default_rng(2)
    x = draw.normal(size=3 * MOST_PAIRED)
    y = x + draw.normal(size=len(x))
    found = kendall(x, y, draw, 20, 0.95)
    assert found.value == pytest.approx(0.5, abs=0.05)
    assert found.low < found.value < found.high
    for correlation in (spearman, kendall):
        same = correlation(np.zeros(5), np.arange(5.0), draw, 5, 0.95)
        assert np.isnan([same.value, same.low, same.high]).all()


def test_a_criterion_that_cannot_be_had_is_missing_with_its_reason(build: Any) -> None:
    network = build("tied_embedding")  # synflow wants an input of ones, and there are tokens
    record = measured(dense(network, ["mix.weight"]), criteria=["synflow", "magnitude"])
    assert "indices" in record.summary["reasons"]["synflow"]
    assert record.summary["criteria"]["synflow"]["spearman"] is None
    assert record.summary["criteria"]["magnitude"]["spearman"] is not None
    assert np.isnan(arrays(record)["saliency"][0]).all()


def test_a_run_with_it_is_the_run_without_it_and_the_rows_of_steps_have_one_shape(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    probe = {"name": "oracle", "weights": 150, "resamples": 5, "moments": ["dense", "step", "end"]}
    for name, probes in (("with", [probe]), ("without", [])):
        pk.run(running.mapping(tmp_path, probes=probes), tmp_path / f"{name}.h5").close()
    one, other = (running.contents(tmp_path / f"{name}.h5") for name in ("with", "without"))
    for key in ("masks/gone", "steps/delta_loss", "examples/indices", "weights/finetuned/fc.0.weight"):
        assert one[key] == other[key]
    with pk.open(tmp_path / "with.h5") as results:
        found = results.probe("oracle", "step")
        assert found["weights"]["delta_loss"].shape == (3, 150)
        assert found["criteria"]["saliency"].shape == (3, 4, 150)
        kept = [row["weights"] for row in results.summary["probes"]["oracle"]["steps"]]
        assert np.isfinite(found["weights"]["place"]).sum(1).tolist() == kept
        assert results.summary["probes"]["oracle"]["dense"]["weights"] == 150


def test_an_unknown_criterion_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, probes=[{"name": "oracle", "criteria": ["qn"]}])
    with pytest.raises(pk.PrunekitError, match="unknown criterion 'qn'"):
        pk.run(spec, tmp_path / "run.h5")
    assert not (tmp_path / "run.h5").exists()
    with pytest.raises(pk.SpecError, match="qm is listed twice"):
        component("probe", {"name": "oracle", "criteria": ["qm", "qm"]})


def test_it_can_be_asked_about_a_model_of_ones_own() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(3, (20,))
    found = pk.probe(model, [(x[:12], y[:12]), (x[12:], y[12:])], {"name": "oracle", "criteria": ["qm"]})
    with torch.no_grad():
        before = nn.functional.cross_entropy(model(x), y)
        model[0].weight[0, 0] = 0.0
        change = float(nn.functional.cross_entropy(model(x), y) - before)
    assert found["delta_loss"][0] == pytest.approx(change, rel=1e-7)
    assert found["spearman"].shape == (1,)
