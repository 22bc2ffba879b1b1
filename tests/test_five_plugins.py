"""The example of five plugins: each keeps what its kind promises, and a run with all of them says what is true."""

import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import prunekit as pk
from prunekit.plugins import default_manager
from prunekit.testing import (
    CriterionContract,
    ProbeContract,
    RecorderContract,
    SchedulerContract,
    StatisticContract,
)

FOLDER = Path(__file__).parent.parent / "examples" / "five_plugins"


def load() -> ModuleType:
    """Import the example, which is not installed."""
    found = importlib.util.spec_from_file_location("five_plugins", FOLDER / "five_plugins.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


five = load()
COMPONENTS = [five.GuardedTaylor, five.OutputEnergy, five.TrustedStride, five.StepGeometry, five.JsonLines]


class WithExample:
    """A contract's second fixture: a host that knows the example."""

    @pytest.fixture
    def manager(self) -> pk.PluginManager:
        manager = pk.PluginManager()
        plugin = manager.register(five)
        assert plugin.status == "loaded", plugin.error
        return manager


class TestGuardedTaylor(WithExample, CriterionContract):
    @pytest.fixture(params=[0.0, 0.5])
    def criterion(self, request: pytest.FixtureRequest) -> pk.Criterion:
        return five.GuardedTaylor(mix=request.param)


class TestOutputEnergy(WithExample, StatisticContract):
    @pytest.fixture
    def statistic(self) -> pk.Estimator:
        return five.OutputEnergy()


class TestTrustedStride(WithExample, SchedulerContract):
    @pytest.fixture
    def scheduler(self) -> pk.Scheduler:
        return five.TrustedStride()


class TestStepGeometry(WithExample, ProbeContract):
    @pytest.fixture
    def probe(self) -> pk.Probe:
        return five.StepGeometry()


class TestJsonLines(WithExample, RecorderContract):
    @pytest.fixture
    def recorder(self) -> pk.Recorder:
        return five.JsonLines()


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.name)
def test_is_short(component: type) -> None:
    assert len(inspect.getsource(component).splitlines()) < 40


@pytest.fixture(scope="module")
def registered() -> Iterator[None]:
    """The example in the host that ``pk.run`` and ``pk.statistics`` use, for this module's tests alone."""
    default_manager.cache_clear()
    default_manager().register(five)
    yield
    default_manager.cache_clear()


@pytest.fixture(scope="module")
def results(registered: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A run of the example's spec, all five in it."""
    out = tmp_path_factory.mktemp("five") / "run.h5"
    with pk.run(FOLDER / "spec.yaml", out=out, overrides={"device": "cpu"}) as results:
        yield results


class TestRun:
    def test_backs_off_and_ends(self, results: Any) -> None:
        attempts, options = results.summary["attempts"], results.summary["spec"]["prune"]["scheduler"]
        gaps = [abs(a["delta_loss"] - a["predicted_delta_loss"]) for a in attempts]
        assert [a["accepted"] for a in attempts] == [gap <= options["tolerance"] for gap in gaps]
        assert 0 < sum(a["accepted"] for a in attempts) == len(results.summary["steps"]) < len(attempts)
        assert results.summary["steps"][-1]["sparsity"] <= options["sparsity"]

    def test_probe_has_a_finite_row_for_every_step(self, results: Any) -> None:
        rows = results.probe("step_geometry")["network"]
        assert sorted(rows) == ["cosine", "norm", "sample_loss", "valid_loss"]
        for row in rows.values():
            assert row.shape == (len(results.summary["steps"]),)
            assert np.isfinite(row).all()

    def test_first_and_second_row_by_hand(self, results: Any) -> None:
        splits = (
            default_manager()
            .get("dataset", "digits")()
            .load(results.summary["spec"]["dataset"]["split_seed"])
        )
        dense = {k: torch.as_tensor(v).double() for k, v in results.weights("dense").items()}
        rows, before = results.probe("step_geometry")["network"], dense
        for step in (1, 2):
            masks = {k: torch.as_tensor(v) for k, v in results.masks(step).items()}
            after = {k: w * masks[k] if k in masks else w for k, w in dense.items()}
            chosen = torch.as_tensor(results.examples(step))
            sample = splits.train.x[chosen], splits.train.y[chosen]
            leaves = {k: w.clone().requires_grad_() for k, w in before.items()}
            loss(leaves, *sample).backward()
            change = torch.cat([(after[k] - before[k]).flatten() for k in masks])
            gradient = torch.cat([leaves[k].grad.flatten() for k in masks])
            cosine = torch.nn.functional.cosine_similarity(change, gradient, dim=0)
            expected = {
                "norm": change.norm(),
                "cosine": cosine,
                "sample_loss": loss(after, *sample),
                "valid_loss": loss(after, splits.valid.x, splits.valid.y),
            }
            for key, value in expected.items():
                assert rows[key][step - 1] == pytest.approx(float(value), rel=1e-4, abs=1e-6), key
            predicted = results.summary["steps"][step - 1]["predicted_delta_loss"]
            assert predicted == pytest.approx(float(gradient @ change), rel=1e-3, abs=1e-6)
            before = after

    def test_lines_are_the_results(self, results: Any) -> None:
        lines = [json.loads(line) for line in results.path.with_suffix(".jsonl").read_text().splitlines()]
        summary = results.summary
        for event, expected in (("attempt", summary["attempts"]), ("step", summary["steps"])):
            found = [line for line in lines if line["event"] == event]
            assert len(found) == len(expected) > 0
            for line, row in zip(found, expected, strict=True):
                shared = line.keys() & row.keys()
                assert {"step", "predicted_delta_loss", "delta_loss"} <= shared
                assert {key: line[key] for key in shared} == {key: row[key] for key in shared}
        probed = [{"step": p["step"]} | p["summary"] for p in lines if p["event"] == "probe step_geometry"]
        assert probed == summary["probes"]["step_geometry"]["steps"]
        assert lines[-1] == {"event": "finished", "status": "complete"}


def events(path: Path) -> list[str]:
    """The lines but for the end, in an order that does not tell when they were written."""
    lines = path.with_suffix(".jsonl").read_text().splitlines()
    return sorted(line for line in lines if "finished" not in line)


def test_lines_are_whole_after_an_interruption(results: Any, tmp_path: Path) -> None:
    class Stop:
        """Ends the first run after its third step."""

        done = False

        @pk.hookimpl
        def prunekit_step_finished(self, step: pk.StepRecord) -> None:
            if step.step == 3 and not self.done:
                self.done = True
                raise KeyboardInterrupt

    default_manager().register(Stop())
    device = {"device": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        pk.run(FOLDER / "spec.yaml", out=tmp_path / "run.h5", overrides=device)
    pk.run(FOLDER / "spec.yaml", out=tmp_path / "run.h5", overrides=device, resume=True)
    assert events(tmp_path / "run.h5") == events(results.path)


def test_probe_refuses_other_moments(registered: None, tmp_path: Path) -> None:
    overrides = {
        "device": "cpu",
        "train.epochs": 0,
        "probes": [{"name": "step_geometry", "moments": ["dense"]}],
    }
    with pytest.raises(pk.UnsupportedError, match="cannot be asked at 'dense'"):
        pk.run(FOLDER / "spec.yaml", out=tmp_path / "run.h5", overrides=overrides)


def loss(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the spec's network, in float64."""
    hidden = torch.tanh(x.flatten(1).double() @ weights["fc.0.weight"].T + weights["fc.0.bias"])
    outputs = hidden @ weights["fc.1.weight"].T + weights["fc.1.bias"]
    return torch.nn.functional.cross_entropy(outputs, y)


def test_statistic_is_plain_autograd(registered: None) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
    x, y = torch.randn(13, 5, dtype=torch.float64), torch.randint(3, (13,))
    expected = torch.autograd.grad(model(x).square().sum() / 2 / 13, list(model.parameters()))
    for size in (1, 4, 13):
        batches = list(zip(x.split(size), y.split(size), strict=True))
        found = pk.statistics(model, batches, ["output_energy"])["output_energy"]
        assert set(found) == {"0.weight", "2.weight"}
        for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
            if name in found:
                torch.testing.assert_close(found[name], gradient)
