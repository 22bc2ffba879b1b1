"""The problems of the Optimal Brain Surgeon's papers."""

from __future__ import annotations

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import running
import torch

import prunekit as pk
from prunekit_plugins.datasets.gaussians import Gaussians
from prunekit_plugins.datasets.monks import Monks
from prunekit_plugins.datasets.xor import XOR

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``benchmarks/obs.py``, whose training and pruning are the test's."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("obs_benchmark", ROOT / "benchmarks" / "obs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "obs_benchmark", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("problem", "train", "positives"), [(1, 124, 216), (2, 169, 142), (3, 122, 228)])
def test_monks_test_sets_are_all_combinations_labelled_by_the_rule(
    problem, train, positives, real_data
) -> None:
    splits = Monks(root=real_data, problem=problem).load(0)
    assert splits.train.x.shape == (train, 17)
    assert splits.test.x.shape == (432, 17)
    assert len(splits.test.x.unique(dim=0)) == 432
    assert int(splits.test.y.sum()) == positives
    starts = [0, 3, 6, 8, 11, 15, 17]
    a = torch.stack([splits.test.x[:, i:j].argmax(1) + 1 for i, j in pairwise(starts)], 1)
    rules = {
        1: (a[:, 0] == a[:, 1]) | (a[:, 4] == 1),
        2: (a == 1).sum(1) == 2,
        3: ((a[:, 4] == 3) & (a[:, 3] == 1)) | ((a[:, 4] != 4) & (a[:, 1] != 3)),
    }
    assert torch.equal(splits.test.y.squeeze(1).bool(), rules[problem])


@pytest.mark.parametrize(
    "line", ["2 1 1 1 1 3 1 data_1", "1 1 1 1 1 5 1 data_1", "1 1 1 1", "1 1 1 1 1 x 1 data_1"]
)
def test_a_damaged_monks_file_is_refused_by_line(line, tmp_path) -> None:
    good = " 1 1 1 1 1 3 1 data_1\n"
    (tmp_path / "monks-1.train").write_text(good + line + "\n")
    (tmp_path / "monks-1.test").write_text(good)
    with pytest.raises(pk.DataError, match=r"monks-1.train:2: needs a class"):
        Monks(root=tmp_path).load(0)
    with pytest.raises(pk.DataError, match=r"monks-2.train is missing"):
        Monks(root=tmp_path, problem=2).load(0)


def test_gaussians_have_the_papers_moments() -> None:
    train = Gaussians(train=200_000, test=0).load(5).train
    first = train.x[train.y.squeeze(1) == 0]
    assert float(train.y.mean()) == pytest.approx(0.5, abs=0.01)
    # An equal mixture: the mean of the means, the mean of the variances plus half the means' distance squared.
    torch.testing.assert_close(first.mean(0), torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5]), rtol=0, atol=0.02)
    expected = torch.tensor([1.135, 0.80, 0.70, 0.815, 0.94]) + torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0])
    torch.testing.assert_close(first.var(0), expected, rtol=0.03, atol=0)
    again = Gaussians(data_seed=5).load(1)
    assert torch.equal(again.train.x, Gaussians().load(5).train.x)


@pytest.mark.parametrize(
    ("number", "hidden", "decay", "damping", "seed", "left"),
    [(1, 3, 3e-3, 1e-3, 0, 12), (2, 2, 1e-4, 1e-3, 0, 15), (3, 2, 2e-2, 1e-3, 0, 4)],
)
def test_obs_prunes_the_monks_networks_at_least_as_far_as_published(
    benchmark, real_data, number, hidden, decay, damping, seed, left
) -> None:
    """14, 15 and 4 weights in 1992; accuracies as there, nothing retrained."""
    splits = Monks(root=real_data, problem=number).load(0)
    problem = benchmark.PROBLEMS[number - 1]
    model = benchmark.trained(splits.train.x.double(), splits.train.y.double(), hidden, decay, seed)
    seen = []

    def watch(weights: int) -> None:
        accurate = benchmark.accuracy(model, splits.train) >= problem.train - 1e-9
        if accurate and benchmark.accuracy(model, splits.test) >= problem.test - 1e-9:
            seen.append(weights)

    benchmark.one_by_one(model, splits.train, damping, watch)
    # Another BLAS may end in another minimum; what was published holds.
    assert min(seen) <= max(left, problem.published)


def test_obs_removes_a_weight_of_xor_without_an_error_where_magnitude_and_obd_fail(benchmark) -> None:
    split = XOR().load(0).train
    batch = split.x.double(), split.y.double()
    found = {}
    for name, criterion in {
        "obs": {"name": "obs", "damping": 1e-6},
        "magnitude": "magnitude",
        "obd": "obd",
    }.items():
        model = benchmark.trained(*batch, 2, 1e-3, 1)
        assert benchmark.accuracy(model, split) == 1
        scheduler = {"name": "explicit", "levels": [1 / 9]}
        pk.prune(
            model, [batch], criterion, scheduler=scheduler, loss="bce_with_logits", prunable={"biases": True}
        )
        found[name] = benchmark.accuracy(model, split)
    assert found["obs"] == 1
    assert found["magnitude"] < 1
    assert found["obd"] < 1


def test_the_monks_example_runs_down_to_17_weights(real_data, tmp_path) -> None:
    out = tmp_path / "monks.h5"
    spec = ROOT / "examples" / "classics" / "monks.yaml"
    assert running.cli("run", spec, "--out", out, "--set", f"dataset.root={real_data}")[0] == 0
    with pk.open(out) as results:
        assert results.summary["steps"][-1]["remaining"] == 17
        assert results.summary["dense"]["test_error"] == 0
        assert results.summary["pruned"]["train_error"] <= 0.1


def test_the_xor_example_runs_and_makes_no_error(tmp_path) -> None:
    out = tmp_path / "xor.h5"
    assert running.cli("run", ROOT / "examples" / "classics" / "xor.yaml", "--out", out)[0] == 0
    with pk.open(out) as results:
        assert results.summary["spec"]["loss"]["name"] == "bce_with_logits"
        assert results.summary["dense"]["train_error"] == results.summary["pruned"]["train_error"] == 0
        assert results.summary["steps"][0]["remaining"] == 8
