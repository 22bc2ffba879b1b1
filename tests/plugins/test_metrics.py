"""Metrics beside loss and error: scikit-learn's numbers, over batches of any sizes, in runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score
from torch import Tensor

import prunekit as pk
from prunekit.observing.listener import Listener
from prunekit.plugins.build import component
from prunekit.testing import MetricContract
from prunekit_plugins.metrics.accuracy import Accuracy
from prunekit_plugins.metrics.f1 import F1
from prunekit_plugins.metrics.perplexity import Perplexity
from prunekit_plugins.metrics.top_k import TopK


class TestBuiltIns(MetricContract):
    @pytest.fixture(params=["perplexity", "accuracy", "f1", "binary", "top_k"])
    def metric(self, request: pytest.FixtureRequest) -> pk.Metric:
        made: dict[str, pk.Metric] = {
            "perplexity": Perplexity(),
            "accuracy": Accuracy(),
            "f1": F1(),
            "binary": F1(average="binary"),
            "top_k": TopK(k=2),
        }
        return made[request.param]


def examples(loss: str) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """Outputs and targets as a loss takes them, and as scikit-learn does: scores and labels of what counts."""
    draw = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(30, 6, 5, generator=draw), torch.randint(5, (30, 6), generator=draw)
    targets[:, 4] = -100
    scores, labels = outputs, targets
    if loss == "causal_lm":
        scores, labels = outputs[:, :-1], targets[:, 1:]
    kept = labels != -100
    ours = outputs.movedim(-1, 1) if loss == "cross_entropy" else outputs
    return ours, targets, scores[kept].numpy(), labels[kept].numpy()


def value(metric: pk.Metric, outputs: Tensor, targets: Tensor, loss: str) -> float | None:
    task = component("loss", loss)
    parts = [metric.sums(outputs[a:b], targets[a:b], task) for a, b in ((0, 7), (7, 8), (8, 30))]
    return metric.value(torch.stack(parts).sum(0).tolist())


@pytest.mark.parametrize("loss", ["cross_entropy", "token_cross_entropy", "causal_lm"])
def test_numbers_are_scikit_learns_on_what_counts(loss: str) -> None:
    outputs, targets, scores, labels = examples(loss)
    predicted = scores.argmax(1)

    assert value(Accuracy(), outputs, targets, loss) == pytest.approx(accuracy_score(labels, predicted))
    assert value(F1(), outputs, targets, loss) == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert value(TopK(k=3), outputs, targets, loss) == pytest.approx(
        top_k_accuracy_score(labels, scores, k=3)
    )
    mean = F.cross_entropy(torch.from_numpy(scores), torch.from_numpy(labels))
    assert value(Perplexity(), outputs, targets, loss) == pytest.approx(math.exp(float(mean)), rel=1e-6)


def test_of_two_classes_f1_is_that_of_the_second() -> None:
    draw = torch.Generator().manual_seed(1)
    outputs, targets = torch.randn(30, 2, generator=draw), torch.randint(2, (30,), generator=draw)

    found = value(F1(average="binary"), outputs, targets, "cross_entropy")

    assert found == pytest.approx(f1_score(targets, outputs.argmax(1)))


@pytest.mark.parametrize("metric", [Accuracy(), F1(), TopK(), Perplexity()])
def test_where_there_are_no_classes_they_are_refused(metric: pk.Metric) -> None:
    with pytest.raises(pk.SpecError, match=f"metric '{metric.name}'"):
        metric.sums(torch.ones(3, 1), torch.ones(3, 1), component("loss", "mse"))


def spec(**evaluate: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "model": {"name": "mlp", "hidden": [8]},
        "dataset": {"name": "digits"},
        "train": {"epochs": 1, "batch_size": 100, "optimizer": {"name": "sgd", "lr": 0.1}},
        "evaluate": evaluate,
        "prune": {
            "criterion": "magnitude",
            "scheduler": {"name": "exponential", "sparsity": 0.5, "steps": 4},
        },
        "finetune": {"epochs": 1},
    }


def test_a_run_has_them_of_every_network_and_after_every_measured_step(tmp_path: Path) -> None:
    metrics = ["accuracy", {"name": "top_k", "k": 2, "label": "top2"}, "perplexity"]
    results = pk.run(spec(every=2, metrics=metrics), tmp_path / "run.h5")
    summary = results.summary

    for phase in ("dense", "pruned", "finetuned"):
        found = summary[phase]
        for split in ("train", "valid", "test"):
            assert found[f"{split}_accuracy"] == pytest.approx(1 - found[f"{split}_error"])
            assert found[f"{split}_accuracy"] < found[f"{split}_top2"] <= 1
            assert found[f"{split}_perplexity"] == pytest.approx(math.exp(found[f"{split}_loss"]), rel=1e-6)
    for step in summary["steps"]:
        measured = step["step"] % 2 == 0
        assert (step["valid_accuracy"] is not None) == measured
        assert not measured or step["valid_accuracy"] == pytest.approx(1 - step["valid_error"])
    assert summary["steps"][-1]["test_top2"] == summary["pruned"]["test_top2"]
    plain = pk.run(spec(every=2), tmp_path / "plain.h5").summary
    assert all(plain["steps"][-1][key] == summary["steps"][-1][key] for key in ("delta_loss", "test_loss"))


class Stop(Listener):
    def step(self, record: pk.StepRecord) -> None:
        if record.step == 2:
            raise KeyboardInterrupt


def test_a_run_that_is_gone_on_with_has_the_same(tmp_path: Path) -> None:
    given = spec(metrics=["f1"])
    whole = pk.run(given, tmp_path / "whole.h5").summary
    with pytest.raises(KeyboardInterrupt):
        pk.run(given, tmp_path / "again.h5", listener=Stop())

    again = pk.run(given, tmp_path / "again.h5", resume=True).summary

    steps, others = ([{**row, "seconds": 0} for row in found["steps"]] for found in (whole, again))
    assert steps == others
    assert steps[0]["valid_f1"] is not None
    assert whole["finetuned"] == again["finetuned"]


def test_two_of_one_name_need_labels_and_labels_are_words(tmp_path: Path) -> None:
    with pytest.raises(
        pk.SpecError, match="metric 'top_k' is listed twice; once is enough, or give each its own label"
    ):
        pk.run(spec(metrics=["top_k", {"name": "top_k", "k": 2}]), tmp_path / "run.h5")
    with pytest.raises(pk.SpecError, match=r"evaluate\.metrics\.0\.label: must be small letters"):
        pk.run(spec(metrics=[{"name": "f1", "label": "F 1"}]), tmp_path / "run.h5")
    with pytest.raises(pk.SpecError, match=r"evaluate\.metrics\.0: .*perplexity"):
        pk.run(spec(metrics=["perplexty"]), tmp_path / "run.h5")


def test_one_that_has_no_meaning_for_the_task_is_refused_before_any_work(tmp_path: Path) -> None:
    given = spec(metrics=["f1"]) | {"loss": "mse", "model": {"name": "mlp", "hidden": [4]}}
    given["dataset"] = {"name": "npz", "path": str(tmp_path / "data.npz")}
    x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    np.savez(tmp_path / "data.npz", train_x=x, train_y=x[:, :1], test_x=x, test_y=x[:, :1])

    with pytest.raises(pk.SpecError, match=r"^metric 'f1' compares classes, which loss 'mse' does not have"):
        pk.run(given, tmp_path / "run.h5")
    assert not (tmp_path / "run.h5").exists()


@pytest.mark.parametrize("label", ["loss", "error", "delta_loss"])
def test_a_label_that_is_a_column_already_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(pk.SpecError, match=f"'{label}' is measured already; give it a label of its own"):
        pk.run(spec(metrics=[{"name": "f1", "label": label}]), tmp_path / "run.h5")


def test_they_stand_on_the_screen_and_on_the_page(tmp_path: Path) -> None:
    results = pk.run(spec(metrics=["accuracy"]), tmp_path / "run.h5")

    _, screen, _ = running.cli("inspect", tmp_path / "run.h5")

    value = f"{results.summary['finetuned']['test_accuracy']:.4f}"
    assert any(
        line.split()[:2] == ["test", "accuracy"] and line.endswith(f"{value} ")
        for line in screen.splitlines()
    )
    assert value in results.to_html()
