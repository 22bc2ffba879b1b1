"""The examples in the hooks' docstrings are installed as plugins, and each is used for what it is."""

from __future__ import annotations

import inspect
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import running
import torch

import prunekit as pk
from prunekit.plugins.build import component
from prunekit.plugins.host import default_manager, hookspecs
from prunekit.testing import CriterionContract

HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("prunekit_"))


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One distribution with a module per example; it is gone afterwards."""
    site = tmp_path / "site"
    info = site / "documented-1.0.dist-info"
    info.mkdir(parents=True)
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: documented\nVersion: 1.0\n")
    entries = ["[prunekit.plugins]"]
    for hook in HOOKS:
        _, _, code = (inspect.getdoc(getattr(hookspecs, hook)) or "").partition("Example::\n")
        site.joinpath(f"documented_{hook}.py").write_text(textwrap.dedent(code))
        entries.append(f"documented_{hook} = documented_{hook}")
    info.joinpath("entry_points.txt").write_text("\n".join(entries))
    monkeypatch.syspath_prepend(str(site))
    default_manager.cache_clear()
    yield
    default_manager.cache_clear()
    for name in [name for name in sys.modules if name.startswith("documented_")]:
        del sys.modules[name]


def example(hook: str) -> Any:
    """The class that the example of a hook registers."""
    (plugin,) = [p for p in default_manager().plugins if p.name == f"documented_{hook}"]
    assert plugin.status == "loaded", plugin.error
    (component,) = plugin.components
    return component


def batches(classes: int = 3) -> list[tuple[Any, Any]]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=draw, dtype=torch.float64)
    return [(x, torch.randint(classes, (30,), generator=draw))]


def linear(outputs: int = 3) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Linear(4, outputs, dtype=torch.float64)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_example_registers(hook: str) -> None:
    (plugin,) = [p for p in default_manager().plugins if p.name == f"documented_{hook}"]
    assert plugin.status == "loaded", plugin.error
    assert len(plugin.components) == ("register" in hook)


def test_prunekit_register_models() -> None:
    model = example("prunekit_register_models")().build(pk.DataInfo((1, 2, 2), 3, "classification"))
    assert model(torch.zeros(5, 1, 2, 2)).shape == (5, 3)


def test_prunekit_register_datasets() -> None:
    splits = example("prunekit_register_datasets")().load(seed=1)
    assert (len(splits.train), len(splits.test), splits.valid) == (60, 30, None)
    assert splits.info == pk.DataInfo((4,), 2, "classification")


def test_prunekit_register_losses() -> None:
    loss = example("prunekit_register_losses")()
    outputs = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(4, (5, 2)).double()
    expected = torch.nn.functional.poisson_nll_loss(outputs, targets)
    torch.testing.assert_close(loss.mean(outputs, targets), expected)
    hessian = torch.autograd.functional.hessian(lambda o: loss.total(o, targets), outputs)
    factor = torch.stack([c.detach() for c in loss.ggn_factor(outputs, targets)])
    products = torch.einsum("knc,knd->ncd", factor, factor)
    torch.testing.assert_close(products, torch.stack([hessian[i, :, i, :] for i in range(5)]))

    x = batches()[0][0]
    counts = x[:, :2].exp().round()
    pruning = pk.prune(linear(2), [(x, counts)], "qm", sparsity=0.5, steps=2, loss="poisson")
    assert pruning.steps[-1].pruned == 4


def test_prunekit_register_criteria() -> None:
    found = pk.saliency(linear(), batches(), "squared")
    torch.testing.assert_close(found["weight"], pk.saliency(linear(), batches(), "lm")["weight"] ** 2)


class TestCriterionExample(CriterionContract):
    @pytest.fixture
    def criterion(self, installed: None) -> pk.Criterion:
        criterion: pk.Criterion = example("prunekit_register_criteria")()
        return criterion


def test_prunekit_register_schedulers() -> None:
    assert example("prunekit_register_schedulers")().levels() == [0.5, 0.75, 0.875]
    pruning = pk.prune(linear(), batches(), "lm", scheduler="halves", steps=2)
    assert [step.pruned for step in pruning.steps] == [6, 9]


def test_prunekit_register_statistics() -> None:
    # The outputs of one linear layer have the inputs as their gradient.
    x = batches()[0][0]
    found = pk.statistics(linear(), batches(), ["output_gradient"])["output_gradient"]["weight"]
    torch.testing.assert_close(found, x.mean(0).expand(3, 4))
    parts = [(x[:7], batches()[0][1][:7]), (x[7:], batches()[0][1][7:])]
    again = pk.statistics(linear(), parts, ["output_gradient"])["output_gradient"]["weight"]
    torch.testing.assert_close(again, found)


def test_prunekit_register_selectors() -> None:
    model = torch.nn.Sequential(linear(4), torch.nn.Tanh(), linear(3))
    pruning = pk.prune(model, batches(), "magnitude", sparsity=0.5, steps=2, selector="last_first")
    kept = {name: int(mask.sum()) for name, mask in pruning.masks.items()}
    assert kept == {"0.weight": 14, "2.weight": 0}


SPEC = {
    "version": 1,
    "name": "documented",
    "model": "perceptron",
    "dataset": "halfspace",
    "train": {"epochs": 2, "batch_size": 20},
    "prune": {"criterion": "squared", "scheduler": "halves", "selector": "last_first"},
    "probes": ["norms"],
    "recorders": ["hdf5", "lines"],
}


def test_prunekit_register_probes_and_prunekit_register_recorders_in_a_run_of_examples(
    tmp_path: Path,
) -> None:
    with pk.run(SPEC, tmp_path / "run.h5") as results:
        squares = [float((w.astype("float64") ** 2).sum()) for w in results.weights("pruned").values()]
        assert results.summary["probes"]["norms"]["norm"] == pytest.approx(sum(squares) ** 0.5)
        assert results.probe("norms")["pruned"]["norm"].shape == (1,)
        rows = [f"{s['step']} {s['sparsity']} {s['delta_loss']}" for s in results.summary["steps"]]
    assert len(rows) == 3
    assert (tmp_path / "run.txt").read_text().splitlines() == rows


def test_prunekit_run_started_prunekit_step_finished_and_prunekit_run_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pk.run(SPEC, tmp_path / "run.h5").close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pruning documented"
    assert [line.split(" changed")[0] for line in lines[1:-1]] == ["step 1", "step 2", "step 3"]
    assert lines[-1] == "documented is complete"


def test_prunekit_run_finished_is_called_when_a_run_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunekit.pruning.step import Pruner

    def fail(*_: Any) -> None:
        raise pk.RunError("no more")

    monkeypatch.setattr(Pruner, "outcomes", fail)
    with pytest.raises(pk.RunError, match="no more"):
        pk.run(SPEC, tmp_path / "run.h5")
    assert capsys.readouterr().err.splitlines() == ["pruning documented", "documented is failed"]


def test_an_exception_in_an_observing_hook_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Observer:
        @pk.hookimpl
        def prunekit_step_finished(self, step: Any) -> None:
            raise ValueError("cannot bear it")

    default_manager().register(Observer())
    with pytest.raises(ValueError, match="cannot bear it"):
        pk.run(SPEC, tmp_path / "run.h5")
    with pk.open(tmp_path / "run.h5") as results:
        assert results.summary["status"] == "failed"
        assert len(results.summary["steps"]) == 1


def test_prunekit_register_metrics_measures_beside_loss_and_error() -> None:
    metric = example("prunekit_register_metrics")()
    scores, labels = torch.tensor([[0.0, 0.0], [9.0, -9.0]]), torch.tensor([0, 1])
    sums = metric.sums(scores, labels, component("loss", "cross_entropy"))
    assert metric.value(sums.tolist()) == pytest.approx(0.75, abs=1e-6)


def test_prunekit_register_executors_starts_the_workers_of_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, sys.path)))
    running.write_spec(tmp_path)
    sweep = tmp_path / "grid.yaml"
    sweep.write_text("base: small.yaml\nexecutor: nice\nseeds: 2\n")
    code, out, err = running.cli("sweep", sweep, "--workers", "2")
    assert code == 0, err
    assert "nice, 2 workers" in err
    assert "2 complete" in out
    logs = [log.read_text() for log in (tmp_path / "grid").glob("worker-*.log")]
    assert sum(log.count("small is complete") for log in logs) == len(logs) == 2
    assert example("prunekit_register_executors").name == "nice"
