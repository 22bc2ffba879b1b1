"""The numbers of a results file are what they say, and a damaged file is refused, never misread."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import running
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import prunekit as pk
from prunekit.errors import ResultsError
from prunekit.observing.listener import Listener

LEVELS = [0.3, 0.5, 0.8]
SCHEDULER = {"name": "explicit", "levels": LEVELS}
SPLITS = ("train", "valid", "test")


class Run:
    """A finished run beside everything that plain torch needs to compute its numbers again."""

    def __init__(
        self, folder: Path, build: Callable[[], nn.Module], regression: bool = False, **changes: Any
    ) -> None:
        running.write_data(folder / "data.npz", regression)
        changes = {"prune": {"criterion": "qm", "scheduler": SCHEDULER, "examples": 50}, **changes}
        pk.run(running.mapping(folder, **changes), folder / "out.h5").close()
        code, out, _ = running.cli("inspect", folder / "out.h5", "--json")
        assert code == 0
        self.summary = json.loads(out)
        self.results = pk.open(folder / "out.h5")
        dtype = getattr(torch, self.summary["spec"]["dtype"])
        self.model = build().to(dtype).eval()
        self.regression = regression
        with np.load(folder / "data.npz") as arrays:
            self.data = {
                split: (torch.tensor(arrays[f"{split}_x"]).to(dtype), torch.tensor(arrays[f"{split}_y"]))
                for split in SPLITS
            }

    def weights(self, phase: str) -> dict[str, Tensor]:
        return {name: torch.tensor(array) for name, array in self.results.weights(phase).items()}

    def masked(self, step: int) -> dict[str, Tensor]:
        """Weights after a step of a criterion that only removes: the dense ones under the masks."""
        masks = self.results.masks(step)
        return {
            name: w * torch.tensor(masks[name]) if name in masks else w
            for name, w in self.weights("dense").items()
        }

    def outputs(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(
            self.model, {n: w.to(x.dtype) if w.is_floating_point() else w for n, w in weights.items()}, x
        )

    def loss(self, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        found = self.outputs(weights, x)
        return F.mse_loss(found, y.to(found)) if self.regression else F.cross_entropy(found, y)

    def metrics(self, weights: dict[str, Tensor]) -> dict[str, float]:
        found = {}
        for split in SPLITS:
            x, y = self.data[split]
            with torch.no_grad():
                found[f"{split}_loss"] = float(self.loss(weights, x, y))
                if not self.regression:
                    found[f"{split}_error"] = float((self.outputs(weights, x).argmax(1) != y).double().mean())
        return found

    def examples(self, step: int) -> tuple[Tensor, Tensor]:
        indices = torch.tensor(self.results.examples(step))
        x, y = self.data["train"]
        return x[indices], y[indices]


def mlp(outputs: int = 3) -> nn.Module:
    model = nn.Module()
    model.fc = nn.ModuleList([nn.Linear(36, 6), nn.Linear(6, outputs)])
    model.forward = lambda x: model.fc[1](model.fc[0](x.flatten(1)).tanh())  # type: ignore[method-assign]
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("qm"), mlp, dtype="float64")


# -- the numbers -----------------------------------------------------------------------------------


def test_metrics_of_every_phase_are_what_plain_torch_computes(run: Run) -> None:
    for phase in ("dense", "pruned", "finetuned"):
        assert run.summary[phase] == pytest.approx(run.metrics(run.weights(phase)), rel=1e-12)


def test_metrics_and_measured_changes_of_every_step_are_what_plain_torch_computes(run: Run) -> None:
    for step in run.summary["steps"]:
        found = run.metrics(run.masked(step["step"]))
        assert {key: step[key] for key in found} == pytest.approx(found, rel=1e-12)
        x, y = run.examples(step["step"])
        with torch.no_grad():
            change = run.loss(run.masked(step["step"]), x, y) - run.loss(run.masked(step["step"] - 1), x, y)
        assert step["delta_loss"] == pytest.approx(float(change), rel=1e-9, abs=1e-13)
    assert {key: run.summary["steps"][-1][key] for key in run.summary["pruned"]} == run.summary["pruned"]


def ggn_diagonal(run: Run, weights: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Mean over examples of the diagonal of Jᵀ(diag(p) − ppᵀ)J, one output of one example at a time."""
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    for example in x:
        outputs = run.outputs(leaves, example[None])[0]
        rows = [torch.autograd.grad(o, list(leaves.values()), retain_graph=True) for o in outputs]
        p = outputs.detach().softmax(0)
        hessian = torch.diag(p) - torch.outer(p, p)
        for i, name in enumerate(leaves):
            jacobian = torch.stack([row[i] for row in rows])
            total[name] += torch.einsum("kl,k...,l...->...", hessian, jacobian, jacobian)
    return {name: value / len(x) for name, value in total.items()}


@pytest.mark.parametrize("criterion", ["lm", "qm", "obd"])
def test_predicted_changes_and_masks_are_those_of_the_loss_model(criterion: str, tmp_path: Path) -> None:
    lam = 0.01
    prune = {"criterion": {"name": criterion, "lambda": lam}, "scheduler": SCHEDULER, "examples": 40}
    run = Run(tmp_path, mlp, dtype="float64", prune=prune, finetune=None, probes=None)
    for step in run.summary["steps"]:
        before = run.results.masks(step["step"] - 1)
        after = run.results.masks(step["step"])
        weights = run.masked(step["step"] - 1)
        x, y = run.examples(step["step"])
        leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
        slopes = torch.autograd.grad(run.loss(leaves, x, y), list(leaves.values()))
        curvature = ggn_diagonal(run, weights, x)
        predicted, ranked = 0.0, []
        for name, g in zip(leaves, slopes, strict=True):
            if name not in before:
                continue
            w = weights[name]
            change = torch.zeros_like(w)
            if criterion in ("lm", "qm"):
                change = change - g * w
            if criterion in ("qm", "obd"):
                change = change + 0.5 * curvature[name] * w**2
            gone = torch.tensor(before[name] & ~after[name])
            predicted += float(change[gone].sum())
            saliency = change.abs() + 0.5 * lam * w**2
            ranked += [
                (float(s), bool(go)) for s, go in zip(saliency[before[name]], gone[before[name]], strict=True)
            ]
        assert step["predicted_delta_loss"] == pytest.approx(predicted, rel=1e-9, abs=1e-13)
        assert max(s for s, go in ranked if go) <= min(s for s, go in ranked if not go)


def test_counts_and_sparsities_are_those_of_the_masks_which_are_nested_and_exact(run: Run) -> None:
    total = run.summary["prunable"]
    assert total == 36 * 6 + 6 * 3
    before = run.results.masks(0)
    assert all(mask.all() for mask in before.values())
    for level, step in zip(LEVELS, run.summary["steps"], strict=True):
        masks = run.results.masks(step["step"])
        assert list(masks) == ["fc.0.weight", "fc.1.weight"]
        pruned = sum(int((~m).sum()) for m in masks.values())
        assert pruned == step["pruned"] == round(level * total)
        assert step["remaining"] == total - pruned
        assert step["target_sparsity"] == level
        assert step["sparsity"] == pruned / total
        assert step["layers"] == pytest.approx({n: 1 - m.mean() for n, m in masks.items()}, abs=1e-15)
        assert not any((masks[n] & ~before[n]).any() for n in masks)
        assert step["seconds"] > 0
        before = masks


def test_pruned_weights_are_zero_and_the_others_are_the_dense_ones(run: Run) -> None:
    dense, pruned, tuned = (run.results.weights(p) for p in ("dense", "pruned", "finetuned"))
    masks = run.results.masks(3)
    for name, mask in masks.items():
        assert np.array_equal(pruned[name], np.where(mask, dense[name], 0))
        assert not tuned[name][~mask].any()
        assert (tuned[name][mask] != dense[name][mask]).any()
    for name in set(dense) - set(masks):
        assert np.array_equal(pruned[name], dense[name])


def test_the_line_probe_ends_at_the_networks_and_its_middle_is_the_mean_of_their_weights(run: Run) -> None:
    lines = run.results.probe("line")
    assert list(lines) == ["dense_to_pruned", "pruned_to_finetuned"]
    for key, arrays in lines.items():
        first, last = key.split("_to_")
        assert arrays["place"].tolist() == [0, 0.5, 1]
        a, b = run.weights(first), run.weights(last)
        middle = {name: (a[name] + b[name]) / 2 for name in a}
        for split in ("train", "valid"):
            found = [run.metrics(weights)[f"{split}_loss"] for weights in (a, middle, b)]
            assert arrays[f"{split}_loss"].tolist() == pytest.approx(found, rel=1e-12)
            summary = run.summary["probes"]["line"][key]
            assert summary[f"{split}_start"] == pytest.approx(run.summary[first][f"{split}_loss"], rel=1e-12)
            assert summary[f"{split}_end"] == pytest.approx(run.summary[last][f"{split}_loss"], rel=1e-12)
            assert summary[f"{split}_highest"] == max(arrays[f"{split}_loss"])
            assert summary[f"{split}_lowest"] == min(arrays[f"{split}_loss"])


def test_the_best_epoch_by_validation_is_the_one_that_is_kept(tmp_path: Path) -> None:
    train = {"epochs": 8, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.5}}
    run = Run(tmp_path, mlp, dtype="float64", train=train, finetune=None, probes=None)
    history = run.results.history("dense")
    assert history["epoch"].tolist() == list(range(1, 9))
    best = int(np.argmin(history["valid_error"]))
    assert best < 7, "the case would not tell the best from the last"
    assert run.summary["dense"]["valid_error"] == history["valid_error"][best]
    assert run.summary["dense"]["valid_loss"] == pytest.approx(history["valid_loss"][best], rel=1e-12)


def test_regression_has_losses_and_no_errors(tmp_path: Path) -> None:
    run = Run(tmp_path, lambda: mlp(2), regression=True, dtype="float64")
    assert run.summary["spec"]["loss"] == {"name": "mse"}
    for phase in ("dense", "pruned", "finetuned"):
        assert run.summary[phase] == pytest.approx(run.metrics(run.weights(phase)), rel=1e-12)
        assert list(run.summary[phase]) == ["train_loss", "valid_loss", "test_loss"]
    for step in run.summary["steps"]:
        assert not [key for key in step if key.endswith("_error")]
        x, y = run.examples(step["step"])
        change = run.loss(run.masked(step["step"]), x, y) - run.loss(run.masked(step["step"] - 1), x, y)
        assert step["delta_loss"] == pytest.approx(float(change), rel=1e-9, abs=1e-13)
    assert running.cli("inspect", tmp_path / "out.h5", "--layers")[0] == 0


def test_splits_that_are_not_there_are_null(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz", valid=0, test=0)
    with pk.run(running.mapping(tmp_path), tmp_path / "out.h5") as results:
        for found in (results.summary["dense"], results.summary["finetuned"], *results.summary["steps"]):
            for key in ("valid_loss", "test_loss", "valid_error", "test_error"):
                assert found[key] is None
            assert found["train_loss"] > 0
        parabolas = {"hessian_parabola", "ggn_parabola"}
        assert set(results.probe("line")["dense_to_pruned"]) == {"place", "train_loss", *parabolas}
        # Without validation the last epoch is kept.
        assert len(results.history("dense")["epoch"]) == 3
    assert running.cli("inspect", tmp_path / "out.h5")[0] == 0


def test_train_examples_limits_the_training_metrics_to_the_first_of_the_split(tmp_path: Path) -> None:
    run = Run(tmp_path, mlp, dtype="float64", evaluate={"train_examples": 17})
    x, y = run.data["train"]
    run.data["train"] = x[:17], y[:17]
    for phase in ("dense", "pruned", "finetuned"):
        assert run.summary[phase] == pytest.approx(run.metrics(run.weights(phase)), rel=1e-12)


def test_a_fresh_sample_is_drawn_for_each_step_and_a_fixed_one_once(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    drawn = {}
    for sample in ("fresh", "fixed"):
        prune = {"criterion": "lm", "scheduler": SCHEDULER, "examples": 30, "sample": sample}
        with pk.run(running.mapping(tmp_path, prune=prune), tmp_path / f"{sample}.h5") as results:
            drawn[sample] = [results.examples(step) for step in (1, 2, 3)]
    for indices in (*drawn["fresh"], *drawn["fixed"]):
        assert len(set(indices.tolist())) == 30
        assert 0 <= indices.min() <= indices.max() < 120
    assert not np.array_equal(drawn["fresh"][0], drawn["fresh"][1])
    assert not np.array_equal(drawn["fresh"][1], drawn["fresh"][2])
    assert all(np.array_equal(indices, drawn["fixed"][0]) for indices in drawn["fixed"])


@pytest.mark.parametrize("examples", [None, 500])
def test_a_sample_of_everything_is_the_training_split_in_order(examples: int | None, tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    prune = {"criterion": "lm", "scheduler": SCHEDULER, "examples": examples}
    with pk.run(running.mapping(tmp_path, prune=prune), tmp_path / "out.h5") as results:
        for step in (1, 2, 3):
            assert results.examples(step).tolist() == list(range(120))


def convolutional(folder: Path, **prune: Any) -> Run:
    return Run(
        folder,
        running.convnet,
        dtype="float64",
        model={"name": "python", "factory": "running:convnet"},
        prune={"criterion": "qm", "scheduler": SCHEDULER, "examples": 50, **prune},
    )


def test_a_network_with_batch_norm_and_dropout_is_measured_in_eval_mode(tmp_path: Path) -> None:
    run = convolutional(tmp_path)
    for phase in ("dense", "pruned", "finetuned"):
        assert run.summary[phase] == pytest.approx(run.metrics(run.weights(phase)), rel=1e-12)
    for step in run.summary["steps"]:
        assert step["train_loss"] == pytest.approx(
            run.metrics(run.masked(step["step"]))["train_loss"], rel=1e-12
        )
    dense, pruned = run.results.weights("dense"), run.results.weights("pruned")
    assert np.array_equal(dense["1.running_mean"], pruned["1.running_mean"])


def test_recalibration_averages_batch_statistics_after_each_steps_measurement(tmp_path: Path) -> None:
    run = convolutional(tmp_path, recalibrate_batchnorm=500)
    pruned = run.weights("pruned")
    x, _ = run.data["train"]  # 120 examples: batches of 100 and of 20
    outputs = [F.conv2d(part, pruned["0.weight"]) for part in torch.split(x, 100)]
    means = torch.stack([o.mean((0, 2, 3)) for o in outputs])
    variances = torch.stack([o.var((0, 2, 3)) for o in outputs])
    torch.testing.assert_close(pruned["1.running_mean"], means.mean(0))
    torch.testing.assert_close(pruned["1.running_var"], variances.mean(0))
    assert int(pruned["1.num_batches_tracked"]) == 2
    # The pruned network is measured as it is kept, the step as it was measured.
    assert run.summary["pruned"] == pytest.approx(run.metrics(pruned), rel=1e-12)
    assert run.summary["steps"][0]["train_loss"] == pytest.approx(
        run.metrics(run.masked(1))["train_loss"], rel=1e-12
    )
    assert run.summary["steps"][-1]["train_loss"] != run.summary["pruned"]["train_loss"]


@pytest.mark.parametrize(("dtype", "rel"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_runs_in_other_dtypes_are_consistent_to_their_precision(
    dtype: str, rel: float, tmp_path: Path
) -> None:
    run = Run(tmp_path, mlp, dtype=dtype)
    assert run.results.weights("dense")["fc.0.weight"].dtype == np.float32
    for phase in ("dense", "pruned", "finetuned"):
        found = run.metrics(run.weights(phase))
        losses = [f"{split}_loss" for split in SPLITS]
        assert [run.summary[phase][k] for k in losses] == pytest.approx([found[k] for k in losses], rel=rel)
        assert run.summary[phase]["train_error"] == found["train_error"]
    for step in run.summary["steps"]:
        assert sum(int((~m).sum()) for m in run.results.masks(step["step"]).values()) == step["pruned"]
        assert step["predicted_delta_loss"] is not None
    tuned, masks = run.results.weights("finetuned"), run.results.masks(3)
    assert not any(tuned[name][~mask].any() for name, mask in masks.items())


def test_a_tied_weight_counts_and_is_stored_once(tmp_path: Path) -> None:
    run = Run(tmp_path, running.tied, dtype="float64", model={"name": "python", "factory": "running:tied"})
    assert run.summary["prunable"] == 36 * 36 + 36 * 3
    assert list(run.results.masks(1)) == ["1.weight", "5.weight"]
    assert "3.weight" not in run.results.weights("pruned")
    for phase in ("dense", "pruned", "finetuned"):
        assert run.summary[phase] == pytest.approx(run.metrics(run.weights(phase)), rel=1e-12)


def test_thousands_of_tensors_are_kept_in_order(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(
        tmp_path,
        model={"name": "python", "factory": "running:crowded"},
        train=None,
        finetune=None,
        probes=None,
    )
    with pk.run(spec, tmp_path / "out.h5") as results:
        found = results.weights("pruned")
    assert list(found) == [
        "1.weight", "1.bias", "3.weight", "3.bias", *(f"a/b.p{i}" for i in range(5000))
    ]  # fmt: skip
    assert [float(found[f"a/b.p{i}"][0]) for i in range(5000)] == list(range(5000))


def test_a_frozen_layer_is_pruned_and_otherwise_left_as_it_is(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, model={"name": "python", "factory": "running:partly_frozen"})
    with pk.run(spec, tmp_path / "out.h5") as results:
        pruned, tuned, masks = results.weights("pruned"), results.weights("finetuned"), results.masks(3)
    assert not masks["1.weight"].all()
    assert np.array_equal(tuned["1.weight"], pruned["1.weight"])
    assert not np.array_equal(tuned["3.weight"], pruned["3.weight"])
    assert not tuned["3.weight"][~masks["3.weight"]].any()


def test_probes_change_nothing_else(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, model={"name": "python", "factory": "running:convnet"})
    found = {}
    for name, probes in (("without", []), ("with", ["line"])):
        pk.run(spec | {"probes": probes}, tmp_path / f"{name}.h5").close()
        everything = running.contents(tmp_path / f"{name}.h5")
        found[name] = {k: v for k, v in everything.items() if not k.startswith(("probes", "spec"))}
    assert found["with"] == found["without"]


def test_a_run_is_repeatable_and_its_seed_matters(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        torch.manual_seed(hash(name) % 1000)  # the caller's random state does not matter
        pk.run(running.mapping(tmp_path, seed=seed), tmp_path / f"{name}.h5").close()
    a, b, c = (running.contents(tmp_path / f"{name}.h5") for name in "abc")
    assert a == b
    for name in ("weights/dense/fc.0.weight", "examples/indices", "masks/gone"):
        assert a[name] != c[name]


def test_what_was_not_finite_is_null_and_the_output_stays_json(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    with pk.run(running.mapping(tmp_path), tmp_path / "out.h5") as results:
        assert results.summary["steps"][0]["delta_loss"] is not None
    with h5py.File(tmp_path / "out.h5", "r+") as file:
        file["steps/delta_loss"][0] = np.nan
        file["steps/train_loss"][0] = np.inf
        del file["probes/line/end/summary"]
        infinite = json.dumps({"dense_to_pruned": {"train_start": math.inf}})
        file["probes/line/end/summary"] = np.frombuffer(infinite.encode(), np.uint8)
    code, out, _ = running.cli("inspect", tmp_path / "out.h5", "--json")
    assert code == 0

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    summary = json.loads(out, parse_constant=refuse)
    assert summary["steps"][0]["delta_loss"] is None
    assert summary["steps"][0]["train_loss"] is None
    assert summary["probes"]["line"]["dense_to_pruned"]["train_start"] is None
    assert running.cli("inspect", tmp_path / "out.h5")[0] == 0


# -- opening ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    running.write_data(folder / "data.npz")
    pk.run(running.mapping(folder), folder / "out.h5").close()
    return folder / "out.h5"


@pytest.mark.parametrize(
    "statement",
    [
        "import prunekit",
        "import prunekit; prunekit.open({file!r}).masks(1)",
        "from prunekit_cli.main import invoke; assert invoke(['inspect', {file!r}]) == 0",
        "from prunekit_cli.main import invoke; assert invoke(['inspect', {file!r}, '--json', '--layers']) == 0",
        "from prunekit_cli.main import invoke; assert invoke(['export', {file!r}, '--weights', {export!r}]) == 0",
        "from prunekit_cli.main import invoke; assert invoke(['validate', {spec!r}]) == 0",
        "from prunekit_cli.main import invoke; assert invoke(['schema']) == 0",
        "from prunekit_cli.main import invoke; assert invoke(['--help']) == 0",
    ],
)
def test_what_only_reads_imports_no_torch(statement: str, small: Path, tmp_path: Path) -> None:
    names = {
        "file": str(small),
        "export": str(tmp_path / "w.safetensors"),
        "spec": str(running.write_spec(tmp_path)),
    }
    code = f"import sys; {statement.format(**names)}; sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_cut_off_at_any_byte_is_refused_or_read_correctly(small: Path, tmp_path: Path) -> None:
    whole = small.read_bytes()
    draw = random.Random(0)
    places = [*range(4096), *(draw.randrange(4096, len(whole)) for _ in range(300)), len(whole) - 1]
    cut = tmp_path / "cut.h5"
    expected = running.read(small)
    refused = 0
    for place in places:
        cut.write_bytes(whole[:place])
        try:
            found = running.read(cut)
        except ResultsError:
            refused += 1
        else:
            assert found == expected
    assert refused > 4000


@pytest.mark.parametrize(("how", "count"), [("one bit", 300), ("one byte", 300), ("many bytes", 250)])
def test_a_file_with_damaged_bytes_is_refused_or_read_as_it_was(
    how: str, count: int, small: Path, tmp_path: Path
) -> None:
    found = running.damaged(small, tmp_path, how, count)
    assert len(found) == count
    assert found.count("MISREAD") == 0
    assert found.count("refused") > count / 2
    assert found.count("read") > count / 50, "what lies between the chunks is nobody's"


def test_a_newer_format_is_refused_and_says_what_would_read_it(small: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer.h5"
    newer.write_bytes(small.read_bytes())
    with h5py.File(newer, "r+") as file:
        file.attrs["format_version"] = 3
        file.attrs["prunekit_version"] = "7.8.9"
    error = running.refused("inspect", newer)
    assert "format 3" in error
    assert "7.8.9" in error


def test_files_that_are_not_results_are_refused(tmp_path: Path) -> None:
    other, text, empty = tmp_path / "other.h5", tmp_path / "text.h5", tmp_path / "empty.h5"
    with h5py.File(other, "w") as file:
        file["data"] = np.arange(3)
    text.write_text("not HDF5")
    empty.touch()
    assert "not a prunekit results file" in running.refused("inspect", other)
    assert "not HDF5" in running.refused("inspect", text)
    assert "not HDF5" in running.refused("inspect", empty)
    assert "no such file" in running.refused("inspect", tmp_path / "absent.h5")
    assert str(tmp_path) in running.refused("inspect", tmp_path)


@pytest.mark.parametrize("attribute", ["format", "format_version", "status", "prunekit_version"])
def test_a_file_without_its_root_attributes_is_refused(attribute: str, small: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(small.read_bytes())
    with h5py.File(damaged, "r+") as file:
        del file.attrs[attribute]
    assert "damaged.h5" in running.refused("inspect", damaged)


def test_a_file_can_be_inspected_while_its_run_goes_on(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    out = tmp_path / "out.h5"
    seen: list[dict[str, Any]] = []

    class Looking(Listener):
        def epoch(self, *_: Any) -> None:
            code, text, _ = running.cli("inspect", out, "--json")
            assert code == 0
            assert running.cli("inspect", out, "--layers")[0] == 0
            seen.append(json.loads(text))

        step = epoch

    opened = []

    class Holding(Looking):
        def probe(self, *_: Any) -> None:
            opened.append(pk.open(out))

    with pk.run(running.mapping(tmp_path), out, listener=Holding()) as results:
        assert results.summary["status"] == "complete"
    assert all(summary["status"] == "running" for summary in seen)
    assert [len(summary["steps"]) for summary in seen] == [0, 0, 0, 1, 2, 3, 3, 3]
    assert seen[0]["dense"] is None
    assert seen[3]["dense"] is not None
    assert seen[3]["pruned"] is None
    # What was opened earlier still shows what it showed.
    with opened[0] as earlier:
        assert earlier.summary["status"] == "running"
        assert earlier.masks(3)["fc.0.weight"].shape == (6, 36)


def test_what_is_not_in_a_file_is_refused_with_what_there_is(small: Path) -> None:
    with pk.open(small) as results:
        for ask, words in (
            (lambda: results.masks(4), "3 finished steps"),
            (lambda: results.masks(-1), "no step -1"),
            (lambda: results.examples(0), "from 1"),
            (lambda: results.weights("sparse"), "dense, pruned, finetuned"),
            (lambda: results.probe("surface"), "line"),
        ):
            with pytest.raises(ResultsError, match=words):
                ask()
        assert results.history("pruned") == {}
    with pytest.raises(ResultsError, match="closed"):
        results.weights("dense")


def test_columns_have_units_and_axes_and_plugins_their_kind(small: Path) -> None:
    with h5py.File(small, "r") as file:
        lengths = {len(data) for data in file["steps"].values()}
        assert lengths == {3}
        for data in file["steps"].values():
            assert data.attrs["axes"][0] == b"step"
            assert "units" in data.attrs
        assert file["probes/line"].attrs["kind"] == b"probe:line"
        assert file["probes/line"].attrs["kind_version"] == 1
        spec = json.loads(file["spec/resolved"][()].tobytes())
        assert spec["prune"]["criterion"]["name"] == "qm"
        assert file["masks/gone"].dtype == np.uint8
        assert file["masks/gone"].shape == (36 * 6 + 6 * 3,)
