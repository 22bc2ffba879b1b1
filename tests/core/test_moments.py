"""Probes read a moment: what they see is what is there, and nothing that they do can be seen afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import running
import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit.observing.moment import Moment, Surroundings
from prunekit.observing.probe import Moments
from prunekit.plugins.build import as_loss, component, estimators
from prunekit.pruning.sample import Sample
from prunekit.pruning.step import Pruner

pytestmark = pytest.mark.usefixtures("adaptive_plugins")


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(20, 5, generator=draw, dtype=torch.float64)
    y = torch.randint(3, (20,), generator=draw)
    return [(x[:13], y[:13]), (x[13:], y[13:])]


def around(model: nn.Module) -> Surroundings:
    return Surroundings(model, as_loss("cross_entropy"), estimators)


def steps(model: nn.Module, criterion: str) -> Iterator[Any]:
    pruner = Pruner(
        around(model),
        component("criterion", criterion),
        component("scheduler", {"name": "linear", "sparsity": 0.6, "steps": 2}),
        component("selector", "global"),
    )
    return pruner.outcomes(lambda index: Sample(batches(), torch.Generator().manual_seed(index)))


def loss_at(model: nn.Module) -> Tensor:
    model.eval()
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    return nn.functional.cross_entropy(model(x), y)


@pytest.mark.parametrize("criterion", ["qm", "obs"])
def test_a_step_shows_the_weights_before_the_change_and_the_weights_now(criterion: str) -> None:
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for outcome in steps(model, criterion):
        moment = outcome.moment
        assert (moment.name, moment.step) == ("step", outcome.step.step)
        assert set(moment.prunable) == {"0.weight", "3.weight"}
        for name in moment.prunable:
            assert torch.equal(moment.before()[name], before[name])
            torch.testing.assert_close(before[name] + moment.change()[name], moment.weights()[name])
            assert not bool(moment.weights()[name][~moment.masks()[name]].any())
        assert set(moment.before()) == set(model.state_dict())
        assert moment.predicted_delta_loss == outcome.step.predicted_delta_loss
        difference = moment.loss() - moment.loss(moment.before())
        assert difference == pytest.approx(outcome.step.delta_loss, abs=1e-14)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_steps_statistics_are_those_at_the_weights_before() -> None:
    model = network()
    moments = []
    for outcome in steps(model, "qm"):
        moment = outcome.moment
        moments.append(moment)
        expected = moment.gradient(moment.before())
        for name, value in moment.statistics["gradient"].items():
            torch.testing.assert_close(value, expected[name])
            assert not torch.allclose(value, moment.gradient()[name])
    assert len(moments) == 2


def test_gradients_and_products_are_those_of_plain_autograd_at_any_weights() -> None:
    model, other = network(), network()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    masks = {
        name: torch.ones_like(model.get_parameter(name), dtype=torch.bool)
        for name in ("0.weight", "3.weight")
    }
    moment = Moment("end", around(model), masks)
    weights = {name: t.detach().clone() for name, t in other.state_dict().items()}
    parameters = [other.get_parameter(name) for name in masks]
    slope = torch.autograd.grad(loss_at(other), parameters, create_graph=True)
    found = moment.gradient(weights, batches())
    for name, expected in zip(masks, slope, strict=True):
        torch.testing.assert_close(found[name], expected.detach())
    vector = {name: torch.randn(m.shape, dtype=torch.float64) for name, m in masks.items()}
    bent = torch.autograd.grad(slope, parameters, list(vector.values()))
    product = moment.product("hessian", vector, weights, batches())
    for name, expected in zip(masks, bent, strict=True):
        torch.testing.assert_close(product[name], expected)
    operator = pk.operator(other, batches(), "ggn")
    product = moment.product("ggn", vector, weights, batches())
    for name, expected in (operator @ vector).items():
        torch.testing.assert_close(product[name], expected)


def test_whatever_a_moment_does_leaves_the_model_as_it_was_also_on_error() -> None:
    model = network()
    model.train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    masks = {"0.weight": torch.ones(4, 5, dtype=torch.bool)}
    moment = Moment("end", around(model), masks)
    other = {name: t + 1 for name, t in moment.weights().items()}
    moment.loss(other, batches())
    moment.gradient(other, batches())
    moment.weights()["0.weight"].zero_()
    moment.masks()["0.weight"].zero_()
    with pytest.raises(pk.DataError, match="data="):
        moment.gradient(other)
    with pytest.raises(pk.SpecError, match="missing"):
        moment.product("ggn", {}, other, batches())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert bool(masks["0.weight"].all())


@pytest.mark.parametrize(
    ("spoken", "names", "every"),
    [
        ("end", ("end",), 0),
        (["dense", "step"], ("dense",), 1),
        ({"every": 3}, (), 3),
        (["pruned", {"every": 5}, "end"], ("pruned", "end"), 5),
    ],
)
def test_moments_are_named_or_counted(spoken: Any, names: tuple[str, ...], every: int) -> None:
    found = Moments.parse(spoken)
    assert (found.names, found.every) == (names, every)
    asked = [step for step in range(1, 11) if found.at("step", step)]
    assert asked == (list(range(every, 11, every)) if every else [])


@pytest.mark.parametrize(
    "spoken", ["ends", [], ["end", "end"], {"every": 0}, {"ever": 2}, ["step", {"every": 2}], [3]]
)
def test_moments_that_do_not_exist_are_refused(spoken: Any) -> None:
    with pytest.raises(ValueError, match=r"must|is"):
        Moments.parse(spoken)


def test_a_run_asks_each_probe_at_its_moments_and_is_not_changed_by_it(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    probes = [
        "everywhere",
        {"name": "everywhere", "label": "again", "moments": [{"every": 2}, "dense"]},
        "size",
        {"name": "line", "points": 3},
    ]
    plain = running.mapping(tmp_path)
    asked = plain | {"probes": probes}
    pk.run(plain, tmp_path / "plain.h5").close()
    with pk.run(asked, tmp_path / "asked.h5") as results, pk.open(tmp_path / "plain.h5") as without:
        found = results.summary["probes"]
        assert [row["step"] for row in found["everywhere"]["steps"]] == [1, 2, 3]
        assert [row["step"] for row in found["again"]["steps"]] == [2]
        assert set(found["again"]) == {"steps", "dense"}
        phases = {name: found["everywhere"][name]["phases"] for name in ("dense", "pruned", "finetuned")}
        assert phases == {"dense": 1, "pruned": 2, "finetuned": 3}
        drawn = [found["everywhere"]["drawn"], *(row["drawn"] for row in found["everywhere"]["steps"])]
        assert len(set(drawn)) == len(drawn)
        for row, step in zip(found["size"]["steps"], results.summary["steps"], strict=True):
            assert row["now"] - row["before"] == pytest.approx(step["delta_loss"], abs=1e-6)
        norms = results.probe("size", "step")["size"]["change"]
        assert norms[:, 0].tolist() == [row["norm"] for row in found["size"]["steps"]]
        assert found["line"] == without.summary["probes"]["line"]
        for key in ("dense", "pruned", "finetuned"):
            assert results.summary[key] == without.summary[key]
        for one, other in zip(results.summary["steps"], without.summary["steps"], strict=True):
            assert {**one, "seconds": 0} == {**other, "seconds": 0}
        for phase in ("dense", "pruned", "finetuned"):
            for name, array in results.weights(phase).items():
                assert (array == without.weights(phase)[name]).all()


@pytest.mark.parametrize(
    ("probes", "message"),
    [
        (["line", "line"], "label"),
        ([{"name": "line", "label": "size"}, "size"], "label"),
        ([{"name": "line", "moments": ["begin"]}], "moments: must be one of dense, step"),
        ([{"name": "line", "moments": {"every": 0}}], "every"),
        ([{"name": "line", "label": ""}], "label"),
    ],
)
def test_probes_that_cannot_be_told_apart_or_asked_are_refused_in_the_spec(
    probes: list[Any], message: str, tmp_path: Path
) -> None:
    running.write_data(tmp_path / "data.npz")
    with pytest.raises(pk.SpecError, match=message):
        pk.run(running.mapping(tmp_path, probes=probes), tmp_path / "out.h5")


def test_a_moment_knows_only_the_phases_so_far(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, probes=["everywhere"], finetune=None)
    with pk.run(spec, tmp_path / "out.h5") as results:
        found = results.summary["probes"]["everywhere"]
        assert "finetuned" not in found
        assert found["phases"] == 2


def test_a_steps_moment_ends_with_the_step_so_that_its_statistics_do_not_pile_up() -> None:
    outcomes = steps(network(), "qm")
    moment = next(outcomes).moment
    assert set(moment.statistics)
    next(outcomes)
    assert not moment.statistics
    with pytest.raises(pk.RunError, match="is over"):
        moment.change()
