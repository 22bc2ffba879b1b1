"""The command line: exit codes, messages without tracebacks, and what each command does."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import torch
from safetensors.numpy import load_file, save_file

import prunekit as pk
from prunekit.runs.state import State


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return running.write_spec(tmp_path)


def refused(spec: Path, *settings: str, code: int = 2) -> str:
    """The message of a run that must not succeed and, with code 2, leaves nothing behind."""
    sets = [word for setting in settings for word in ("--set", setting)]
    before = set(spec.parent.iterdir())
    error = running.refused("run", spec, "--out", spec.parent / "refused.h5", *sets, code=code)
    if code == 2:
        assert set(spec.parent.iterdir()) == before
    return error


# -- usage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "rnu"),
        (["run"], "SPEC"),
        (["run", "small.yaml", "--sett", "a=1"], "--sett"),
        (["inspect"], "FILE"),
        (["validate", "absent.yaml"], "absent.yaml: cannot be read: No such file"),
        (["run", "absent.yaml"], "absent.yaml: cannot be read: No such file"),
        (["run", "small.yaml", "--out", "absent/out.h5"], "absent does not exist"),
        (["run", "small.yaml", "--out", "."], "is a folder"),
        (["run", "small.yaml", "--set", "seed"], "must be PATH=VALUE"),
        (["run", "small.yaml", "--set", "=3"], "must be PATH=VALUE"),
        (["run", "small.yaml", "--set", "seed=1", "--set", "seed=2"], "--set seed: given twice"),
        (["run", "small.yaml", "--set", "seed=[1"], "--set seed:1:3: not valid YAML"),
        (["run", "small.yaml", "--device", "cpu", "--set", "device=cpu"], "one is enough"),
        (["run", "small.yaml", "--block", "nothing"], "nothing"),
        (["inspect", "small.yaml"], "not HDF5"),
        (["export", "absent.h5"], "none is given"),
    ],
)
def test_bad_usage_ends_with_2_and_a_message(arguments: list[str], message: str, spec: Path) -> None:
    assert message in running.refused(*arguments)


def test_all_problems_of_a_spec_stand_on_lines_of_their_own_and_are_not_wrapped(spec: Path) -> None:
    spec.write_text(running.YAML.replace("seed: 7", "sed: 7").replace("name: qm", "name: qn"))
    for command in ("run", "validate"):
        lines = running.refused(command, spec).splitlines()
        assert len(lines) == 2
        assert lines[0].startswith(f"{spec}:3:1: sed: unknown key 'sed'; did you mean 'seed'? Accepted: ")
        assert len(lines[0]) > 150
        assert lines[1].startswith(
            f"{spec}:9:15: prune.criterion.name: unknown criterion 'qn'; did you mean 'qm'?"
        )


def test_validate_says_what_a_good_spec_is(spec: Path) -> None:
    code, out, err = running.cli("validate", spec, "--set", "prune.scheduler.steps=5")
    assert (code, err) == (0, "")
    assert out.strip() == f"{spec}: valid: mlp on npz, criterion qm, 5 pruning steps"


def test_schema_is_a_json_schema(spec: Path) -> None:
    code, out, _ = running.cli("schema")
    assert code == 0
    assert json.loads(out)["properties"]["seed"]["minimum"] == 0


def test_version_and_help(spec: Path) -> None:
    assert running.cli("--version")[:2] == (0, f"prunekit {pk.__version__}\n")
    code, out, _ = running.cli("run", "--help")
    assert code == 0
    assert "--resume" in out


def test_a_run_writes_by_default_beside_the_caller_and_reports(spec: Path, tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()
    moved = spec.rename(tmp_path / "specs" / "other.yaml")
    (tmp_path / "data.npz").rename(tmp_path / "specs" / "data.npz")  # relative to the spec
    code, out, err = running.cli("run", moved)
    assert code == 0
    assert (tmp_path / "small.h5").is_file()
    assert "small.h5" in out
    assert "70.085 %" in out
    assert "prune 3/3" in err
    assert "Networks" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.h5", "specs"]


def test_flags_are_written_back_into_the_recorded_spec(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    flags = ("--set", "prune.criterion.lambda=1.0e-3", "--set", "name=no", "--device", "cpu")
    assert running.cli("run", spec, "--out", out, *flags)[0] == 0
    with pk.open(out) as results:
        summary = results.summary
    assert summary["spec"]["prune"]["criterion"]["lambda"] == 0.001
    assert summary["spec"]["name"] == "no"
    origins = summary["origins"]
    assert origins["prune.criterion.lambda"] == origins["name"] == origins["device"] == "flag"
    assert origins["prune.criterion.name"] == origins["seed"] == "file"
    assert origins["dtype"] == "default"
    assert summary["environment"]["torch"] == torch.__version__


# -- data ------------------------------------------------------------------------------------------


def test_missing_data_is_named_with_where_it_should_be(spec: Path, tmp_path: Path) -> None:
    error = refused(spec, "dataset={name: mnist, root: nowhere}")
    assert "train-images-idx3-ubyte" in error
    assert str(tmp_path / "nowhere") in error
    error = refused(spec, "dataset={name: cifar10, root: nowhere}")
    assert "data_batch_1.bin" in error
    assert str(tmp_path / "nowhere") in error
    assert "absent.npz: no such file" in refused(spec, "dataset.path=absent.npz")


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A hundred images; the training files gzipped."""
    draw = np.random.default_rng(0)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in (("train", 100), ("t10k", 20)):
        images = idx(draw.integers(0, 256, (count, 4, 4), dtype=np.uint8))
        labels = idx((np.arange(count) % 10).astype(np.uint8))
        for path, raw in ((f"{name}-images-idx3-ubyte", images), (f"{name}-labels-idx1-ubyte", labels)):
            if name == "train":
                (folder / f"{path}.gz").write_bytes(gzip.compress(raw))
            else:
                (folder / path).write_bytes(raw)
    return folder


MNIST = "dataset={name: mnist, root: ., valid: 20}"


def test_mnist_is_read_gzipped_or_not(mnist: Path, spec: Path, tmp_path: Path) -> None:
    assert running.cli("run", spec, "--out", tmp_path / "out.h5", "--set", MNIST)[0] == 0
    with pk.open(tmp_path / "out.h5") as results:
        assert results.summary["dense"]["test_loss"] > 0
        assert results.examples(1).max() < 80


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train-images-idx3-ubyte.gz", lambda raw: raw[:-20]),
        ("train-images-idx3-ubyte.gz", lambda raw: raw[:5]),
        ("train-images-idx3-ubyte.gz", lambda raw: b""),
        ("train-images-idx3-ubyte.gz", lambda raw: raw[:40] + bytes([raw[40] ^ 255]) + raw[41:]),
        ("train-images-idx3-ubyte.gz", lambda raw: b"<html>not found</html>"),
        ("t10k-images-idx3-ubyte", lambda raw: raw[:-1]),
        ("t10k-images-idx3-ubyte", lambda raw: raw[:7]),
        ("t10k-images-idx3-ubyte", lambda raw: b""),
        ("t10k-images-idx3-ubyte", lambda raw: b"\1" + raw[1:]),
        ("t10k-images-idx3-ubyte", lambda raw: raw[:4] + b"\xff" * 12 + raw[16:]),
        ("t10k-labels-idx1-ubyte", lambda raw: idx(np.zeros(19, dtype=np.uint8))),
        ("t10k-labels-idx1-ubyte", lambda raw: raw[:-1] + b"\xc8"),
    ],
)  # fmt: skip
def test_a_damaged_idx_file_is_refused(name: str, damage: Any, mnist: Path, spec: Path) -> None:
    path = mnist / name
    path.write_bytes(damage(path.read_bytes()))
    error = refused(spec, MNIST)
    assert name in error or "test files do not belong together" in error or "200" in error


@pytest.mark.parametrize("damage", ["truncated", "label", "missing", "empty"])
def test_damaged_cifar_files_are_refused(damage: str, spec: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        (folder / name).write_bytes(bytes(2 * 3073))
    path = folder / "data_batch_3.bin"
    match damage:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-1])
        case "label":
            path.write_bytes(b"\x0a" + path.read_bytes()[1:])
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
    assert "data_batch_3.bin" in refused(spec, "dataset={name: cifar10, root: ., valid: 2}")


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    found: dict[str, Any] = {"train_x": draw.normal(size=(30, 4)), "train_y": np.arange(30) % 3} | changes
    return {key: value for key, value in found.items() if value is not None}


def with_nan() -> np.ndarray:
    x = np.ones((30, 4))
    x[7, 2] = np.nan
    return x


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_y": None}, "train_y is missing"),
        ({"train_x": None, "train_y": None}, "no train_x"),
        ({"train_x": with_nan()}, "train split's inputs are not all finite"),
        ({"train_x": np.full((30, 4), 1e300)}, "train split's inputs are not all finite"),
        ({"train_y": np.full(30, np.inf)}, "train split's targets are not all finite"),
        ({"train_y": np.arange(29)}, "30 rows and train_y has 29"),
        ({"train_y": -np.ones(30, dtype=int)}, "class indices start at 0; found -1"),
        ({"train_x": np.zeros((0, 4)), "train_y": np.zeros(0, dtype=int)}, "training split is empty"),
        ({"train_x": np.array(3.0)}, "train_x is float64 of shape ()"),
        ({"train_x": np.array(["a"] * 30)}, "train_x is <U1"),
        ({"train_x": np.array([{}] * 30)}, "plain arrays (pickled objects, which are refused)"),
        ({"valid_x": np.zeros((5, 3)), "valid_y": np.zeros(5, dtype=int)}, "validation examples of shape (3,)"),
        ({"test_x": np.zeros((5, 4))}, "test_y is missing"),
        ({"train_y": np.zeros((30, 1), dtype=int)}, "do not fit"),
        ({"train_y": np.zeros((30, 1), dtype=int)}, "labels in a column"),
    ],
)  # fmt: skip
def test_unfit_arrays_are_refused(changes: dict[str, Any], message: str, spec: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "unfit.npz", **arrays(**changes))
    assert message in refused(spec, "dataset.path=unfit.npz")


@pytest.mark.parametrize("ignored", [255, -1, -100])
def test_a_label_that_the_loss_ignores_is_no_class(ignored: int, spec: Path, tmp_path: Path) -> None:
    labels = np.arange(30) % 2
    labels[::7] = ignored
    np.savez(tmp_path / "some.npz", **arrays(train_y=labels))
    chosen = f"loss={{name: cross_entropy, ignore_index: {ignored}}}"
    out = tmp_path / "ignored.h5"
    code, _, err = running.cli("run", spec, "--out", out, "--set", "dataset.path=some.npz", "--set", chosen)
    assert code == 0, err
    with pk.open(out) as results:
        assert list(results.weights("dense").values())[-1].shape[0] == 2


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(30) % 2 + 1, "labels go from 1 to 2, and no example has 0"),
        (np.arange(30) % 2 * 3, "no example has 1, 2; .*4 outputs for 2 classes"),
    ],
)
def test_labels_that_start_at_1_or_have_gaps_are_said(labels, said: str, spec: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "gaps.npz", **arrays(train_y=labels))
    with pytest.warns(pk.PrunekitWarning, match=said):
        pk.run(spec, tmp_path / "gaps.h5", {"dataset.path": "gaps.npz"})


@pytest.mark.parametrize(
    ("loss", "value", "message"),
    [
        ("bce_with_logits", 1.5, "targets are 0, 1 or in between; found 0 to 1.5"),
        ("bce_with_logits", -0.25, "targets are 0, 1 or in between; found -0.25 to 0"),
        ("cross_entropy", -0.25, "class indices (integers) or probabilities; found -0.25"),
    ],
)
def test_targets_that_are_no_probabilities_are_refused(
    loss: str, value: float, message: str, spec: Path, tmp_path: Path
) -> None:
    targets = np.zeros((30, 3))
    targets[3, 1] = value
    changes = {"train_y": targets, **dict.fromkeys(("valid_x", "valid_y", "test_x", "test_y"))}
    np.savez(tmp_path / "unfit.npz", **arrays(**changes))
    assert message in refused(spec, "dataset.path=unfit.npz", f"loss={loss}", "train=null", "finetune=null")


def test_damaged_npz_files_are_refused(spec: Path, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "whole.npz", **arrays())
    whole = (tmp_path / "whole.npz").read_bytes()
    draw = np.random.default_rng(3)
    path = tmp_path / "damaged.npz"
    for place in [0, 1, 4, 100, *draw.integers(0, len(whole), 12), len(whole) - 1]:
        path.write_bytes(whole[:place])
        assert "damaged.npz" in refused(spec, "dataset.path=damaged.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(path)
    assert "damaged.npz" in refused(spec, "dataset.path=damaged.npz")
    path.write_bytes(pickle.dumps({"train_x": 1}))
    assert "damaged.npz" in refused(spec, "dataset.path=damaged.npz")


@pytest.mark.parametrize("flavour", [">f4", "<f8", "f2", "longdouble", "u1", "?", "fortran"])
def test_arrays_of_any_numeric_type_and_order_are_read(flavour: str, spec: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 2, (30, 4))
    x = np.asfortranarray(x, dtype=float) if flavour == "fortran" else x.astype(flavour)
    np.savez(tmp_path / "kind.npz", **arrays(train_x=x, train_y=(np.arange(30) % 3).astype(">i4")))
    out = tmp_path / "out.h5"
    assert running.cli("run", spec, "--out", out, "--set", "dataset.path=kind.npz")[0] == 0


def test_a_class_that_the_network_lacks_is_refused_before_any_work(spec: Path, tmp_path: Path) -> None:
    model = "model={name: python, factory: 'running:convnet'}"  # three classes
    with np.load(tmp_path / "data.npz") as file:
        data = dict(file)
    data["test_y"][-1] = 3
    np.savez(tmp_path / "four.npz", **data)
    assert "test examples" in refused(spec, model, "dataset.path=four.npz")


def test_a_model_and_loss_that_do_not_fit_the_data_are_refused(spec: Path) -> None:
    assert "needs images of 28 to 32 pixels" in refused(spec, "model=lenet5")
    assert "do not fit" in refused(spec, "loss=mse")
    assert "do not fit" in refused(spec, "loss={name: cross_entropy, weight: [1.0, 2.0]}")


# -- models, checkpoints, devices ------------------------------------------------------------------


@pytest.fixture
def checkpoint(spec: Path, tmp_path: Path) -> Path:
    """Dense weights of a run."""
    out = tmp_path / "first.h5"
    pk.run(spec, out).close()
    path = tmp_path / "dense.safetensors"
    assert running.cli("export", out, "--weights", path, "--phase", "dense")[0] == 0
    return path


def test_exported_weights_are_a_checkpoint_with_the_same_metrics(
    checkpoint: Path, spec: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.h5"
    assert running.cli("run", spec, "--out", again, "--set", "model.checkpoint=dense.safetensors")[0] == 0
    with pk.open(tmp_path / "first.h5") as first, pk.open(again) as second:
        assert second.summary["dense"] == first.summary["dense"]
        assert second.history("dense") == {}  # beside a checkpoint nothing is trained
        assert second.summary["steps"][0]["delta_loss"] == first.summary["steps"][0]["delta_loss"]
        assert second.summary["finetuned"] == first.summary["finetuned"]
        for name, array in first.weights("finetuned").items():
            assert np.array_equal(second.weights("finetuned")[name], array)


@pytest.mark.filterwarnings("ignore:(zeros|scheduler).")  # the export is of a pruned network
@pytest.mark.parametrize("factory", ["running:convnet", "running:tied"])
def test_buffers_and_tied_weights_survive_the_export(factory: str, spec: Path, tmp_path: Path) -> None:
    model = f"model.factory={factory}"
    flags = ("--set", "model={name: python}", "--set", model)
    assert running.cli("run", spec, "--out", tmp_path / "a.h5", *flags)[0] == 0
    for phase in ("dense", "pruned", "finetuned"):
        path = tmp_path / f"{phase}.safetensors"
        assert running.cli("export", tmp_path / "a.h5", "--weights", path, "--phase", phase)[0] == 0
        out = tmp_path / f"{phase}.h5"
        code, _, err = running.cli(
            "run", spec, "--out", out, *flags, "--set", f"model.checkpoint={path.name}"
        )
        assert code == 0, err
        with pk.open(tmp_path / "a.h5") as first, pk.open(out) as second:
            assert second.summary["dense"] == first.summary[phase]


def test_masks_are_exported_as_booleans(checkpoint: Path, tmp_path: Path) -> None:
    for step, flags in ((3, ()), (1, ("--step", "1")), (0, ("--step", "0"))):
        path = tmp_path / f"masks{step}.safetensors"
        assert running.cli("export", tmp_path / "first.h5", "--masks", path, *flags)[0] == 0
        found = load_file(path)
        with pk.open(tmp_path / "first.h5") as results:
            for name, mask in results.masks(step).items():
                assert found[name].dtype == bool
                assert np.array_equal(found[name], mask)


def test_an_export_that_would_destroy_something_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    results, before = tmp_path / "first.h5", (tmp_path / "first.h5").read_bytes()
    assert "--overwrite" in running.refused("export", results, "--weights", checkpoint)
    assert running.cli("export", results, "--weights", checkpoint, "--overwrite")[0] == 0
    assert "results file itself" in running.refused("export", results, "--weights", results, "--overwrite")
    both = tmp_path / "both"
    assert "both" in running.refused("export", results, "--weights", both, "--masks", both)
    assert "cannot be written" in running.refused("export", results, "--weights", tmp_path / "no" / "w")
    assert "sparse" in running.refused("export", results, "--weights", both, "--phase", "sparse")
    assert "no step 9" in running.refused("export", results, "--masks", both, "--step", "9")
    assert not both.exists()
    assert results.read_bytes() == before


def test_torch_checkpoints_are_read_plain_or_nested(checkpoint: Path, spec: Path, tmp_path: Path) -> None:
    state = {name: torch.tensor(array) for name, array in load_file(checkpoint).items()}
    with pk.open(tmp_path / "first.h5") as results:
        expected = results.summary["dense"]
    for name, content in (("plain.pt", state), ("nested.pth", {"epoch": 3, "state_dict": state})):
        torch.save(content, tmp_path / name)
        out = tmp_path / f"{name}.h5"
        assert running.cli("run", spec, "--out", out, "--set", f"model.checkpoint={name}")[0] == 0
        with pk.open(out) as results:
            assert results.summary["dense"] == expected


class Payload:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def test_a_pickle_with_code_is_refused_and_not_executed(spec: Path, tmp_path: Path) -> None:
    torch.save({"fc.0.weight": Payload()}, tmp_path / "evil.pt")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Payload()))
    for name in ("evil.pt", "evil.pth"):
        assert name in refused(spec, f"model.checkpoint={name}")
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_that_does_not_fit_names_its_tensors(
    checkpoint: Path, spec: Path, tmp_path: Path
) -> None:
    tensors = load_file(checkpoint)
    assert "fc.0.weight: [6, 36] in the file, [5, 36] in the model" in refused(
        spec, "model={name: mlp, hidden: [5], checkpoint: dense.safetensors}"
    )
    cases = {
        "missing": {k: v for k, v in tensors.items() if k != "fc.1.bias"},
        "extra": {**tensors, "head.weight": tensors["fc.0.weight"]},
        "nan": {**tensors, "fc.1.bias": np.array([0, np.nan, 0], dtype=np.float32)},
    }
    messages = {
        "missing": "fc.1.bias: missing",
        "extra": "head.weight: not in the model",
        "nan": "fc.1.bias: holds values that are not finite",
    }
    for name, content in cases.items():
        save_file(content, tmp_path / f"{name}.safetensors")
        assert messages[name] in refused(spec, f"model.checkpoint={name}.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "must hold names and tensors" in refused(spec, "model.checkpoint=list.pt")


def test_damaged_and_missing_checkpoints_are_refused(checkpoint: Path, spec: Path, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    torch.save({"a": torch.zeros(100)}, tmp_path / "whole.pt")
    torch_whole = (tmp_path / "whole.pt").read_bytes()
    for suffix, raw in ((".safetensors", whole), (".pt", torch_whole)):
        path = tmp_path / f"damaged{suffix}"
        for content in (b"", raw[:7], raw[: len(raw) // 2], raw[:-1], b"\xff" * 8 + raw[8:], b"{}"):
            path.write_bytes(content)
            assert path.name in refused(spec, f"model.checkpoint={path.name}")
    assert "no such file" in refused(spec, "model.checkpoint=absent.pt")
    (tmp_path / "empty").mkdir()
    assert "empty: holds no weights" in refused(spec, "model.checkpoint=empty")


def test_a_cuda_device_that_is_not_there_is_refused(spec: Path) -> None:
    assert "device 'cuda:63' does not exist" in running.refused("run", spec, "--device", "cuda:63")


def test_a_model_without_prunable_weights_is_refused(spec: Path) -> None:
    model = "model={name: python, factory: 'running:no_layers'}"
    assert "no prunable weights" in refused(spec, model)
    assert "no prunable weights" in refused(spec, "prune.prunable={exclude: ['*']}")
    assert "'head.*' matches no parameter" in refused(spec, "prune.prunable={exclude: ['head.*']}")


@pytest.mark.parametrize(
    ("factory", "kwargs", "message"),
    [
        ("absent_module:build", "{}", "model.factory: 'absent_module:build' cannot be imported"),
        ("running:absent", "{}", "model.factory: 'running:absent' cannot be imported"),
        ("running:YAML", "{}", "must be callable"),
        ("running", "{}", "model.factory: must"),
        ("running:convnet", "{widht: 4}", "model.kwargs: running:convnet: got an unexpected keyword argument 'widht'"),
        ("running:convnet", "[4]", "model.kwargs: must be a mapping"),
        ("builtins:dict", "{a: 1}", "builtins:dict returned dict, not an nn.Module"),
    ],
)  # fmt: skip
def test_a_factory_that_gives_no_network_is_refused(
    factory: str, kwargs: str, message: str, spec: Path
) -> None:
    error = refused(spec, f"model={{name: python, factory: '{factory}', kwargs: {kwargs}}}")
    assert message in error


def test_keyword_arguments_reach_the_factory(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    model = "model={name: python, factory: 'running:convnet', kwargs: {width: 2}}"
    assert running.cli("run", spec, "--out", out, "--set", model)[0] == 0
    with pk.open(out) as results:
        assert results.masks(1)["0.weight"].shape == (2, 1, 3, 3)


# -- runs that fail --------------------------------------------------------------------------------


def test_a_training_loss_that_is_not_finite_fails_the_run(spec: Path, tmp_path: Path) -> None:
    error = refused(spec, "train.optimizer.lr=1e38", code=1)
    assert "the training loss is nan in epoch" in error
    with pk.open(tmp_path / "refused.h5") as results:
        assert results.summary["status"] == "failed"
        assert "training loss" in results.summary["environment"]["error"]
        assert results.summary["dense"] is None
    code, out, _ = running.cli("inspect", tmp_path / "refused.h5")
    assert code == 0
    assert "failed (the training loss is nan" in out


def test_what_a_network_cannot_be_trained_on_is_said(spec: Path) -> None:
    assert "no trainable parameter" in refused(spec, "model={name: python, factory: 'running:frozen'}")
    narrow = "model={name: python, factory: 'running:narrow'}"
    error = refused(spec, narrow, "train.batch_size=7", code=1)
    assert "single example" in error
    assert "batch_size" in error


def test_overwrite_replaces_anything_but_what_the_run_reads(spec: Path, tmp_path: Path) -> None:
    for path in (spec, tmp_path / "data.npz"):
        before = path.read_bytes()
        assert "the run reads this file" in running.refused("run", spec, "--out", path, "--overwrite")
        assert path.read_bytes() == before
    (tmp_path / "other.h5").touch()
    assert running.cli("run", spec, "--out", tmp_path / "other.h5", "--overwrite")[0] == 0


def test_a_saliency_that_is_not_finite_fails_the_run_and_names_the_parameter(
    checkpoint: Path, spec: Path, tmp_path: Path
) -> None:
    tensors = load_file(checkpoint)
    tensors["fc.1.weight"] = np.full_like(tensors["fc.1.weight"], 1e38)
    save_file(tensors, tmp_path / "huge.safetensors")
    error = refused(spec, "model.checkpoint=huge.safetensors", code=1)
    assert "the saliency of fc.0.weight is not finite" in error
    with pk.open(tmp_path / "refused.h5") as results:
        assert results.summary["status"] == "failed"
        assert results.summary["steps"] == []


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file can grow beyond this, which is how a full disk shows in one process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_fails_the_run_and_keeps_what_was_finished(spec: Path, tmp_path: Path) -> None:
    pk.run(spec, tmp_path / "whole.h5").close()
    whole = running.contents(tmp_path / "whole.h5")
    kept = set()
    # What fails is the state, then the new file, then one of its changes (with the room that they set aside).
    for size in (2_000, 12_000, *range(1_060_000, 1_140_000, 8_000)):
        out = tmp_path / f"{size}.h5"
        with file_size_limit(size):
            code, _, error = running.cli("run", spec, "--out", out)
        assert code == 1
        assert "cannot be written" in error
        assert "Traceback" not in error
        assert not list(tmp_path.glob("*.tmp"))
        before: list[Any] = []
        if out.exists():
            with pk.open(out) as results:
                assert results.summary["status"] in ("running", "failed")
                before = results.summary["steps"]
                kept.add(len(before))
        state = Path(f"{out}.state")
        if state.exists():
            State.load(state)
        assert running.cli("run", spec, "--out", out, "--resume")[0] == 0
        assert running.contents(out) == whole
        with pk.open(out) as results:
            assert results.summary["steps"][: len(before)] == before
    assert {0, 3} <= kept


def test_standard_output_that_cannot_be_written_is_no_bug_of_ours(spec: Path, tmp_path: Path) -> None:
    pk.run(spec, tmp_path / "out.h5").close()
    code = "import sys; from prunekit_cli.main import main; main()"
    with open("/dev/full", "w") as full:
        for arguments in (["inspect", "out.h5"], ["inspect", "out.h5", "--json"], ["schema"]):
            done = subprocess.run(
                [sys.executable, "-c", code, *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            assert done.returncode == 1
            assert done.stderr.count("\n") == 1
            assert "No space left" in done.stderr


def test_a_reader_that_goes_away_is_no_failure(spec: Path, tmp_path: Path) -> None:
    pk.run(spec, tmp_path / "out.h5").close()
    code = "import sys; from prunekit_cli.main import main; main()"
    for arguments in (["inspect", "out.h5", "--json"], ["schema"]):
        with subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.read(1)
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 0


def test_tables_come_out_where_the_terminal_has_no_greek(spec: Path, tmp_path: Path) -> None:
    pk.run(spec, tmp_path / "out.h5").close()
    code = "import sys; from prunekit_cli.main import main; main()"
    for arguments in (["inspect", "out.h5"], ["inspect", "out.h5", "--json"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.isascii()
        if "--json" in arguments:
            json.loads(done.stdout)


# -- inspect ---------------------------------------------------------------------------------------


def test_inspect_prints_the_summary_as_json_with_every_key_of_the_contract(
    spec: Path, tmp_path: Path
) -> None:
    with pk.run(spec, tmp_path / "out.h5") as results:
        expected = results.summary
    code, out, err = running.cli("inspect", tmp_path / "out.h5", "--json")
    assert (code, err) == (0, "")
    summary = json.loads(out)
    assert summary == expected
    assert {
        "format", "format_version", "status", "spec", "environment", "prunable",
        "dense", "steps", "pruned", "finetuned", "probes",
    } <= set(summary)  # fmt: skip
    metrics = [f"{split}_{kind}" for kind in ("loss", "error") for split in ("train", "valid", "test")]
    assert list(summary["dense"]) == list(summary["pruned"]) == list(summary["finetuned"]) == metrics
    assert list(summary["steps"][0]) == [
        "step", "target_sparsity", "sparsity", "pruned", "remaining", "predicted_delta_loss", "delta_loss",
        *metrics, "layers", "seconds",
    ]  # fmt: skip


def test_a_criterion_without_a_loss_model_predicts_nothing(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    assert (
        running.cli(
            "run", spec, "--out", out, "--set", "prune.criterion=magnitude", "--set", "finetune=null"
        )[0]
        == 0
    )
    with pk.open(out) as results:
        assert [step["predicted_delta_loss"] for step in results.summary["steps"]] == [None] * 3
        assert results.summary["steps"][0]["delta_loss"] is not None
        assert results.summary["finetuned"] is None
        assert list(results.summary["probes"]["line"]) == ["dense_to_pruned"]
    assert running.cli("inspect", out, "--layers")[0] == 0


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_a_plot_is_drawn(suffix: str, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / f"plot.{suffix}"
    code, out, _ = running.cli("inspect", tmp_path / "first.h5", "--plot", path)
    assert code == 0
    assert str(path) in out
    assert path.read_bytes()[:4] in (b"\x89PNG", b"%PDF", b"<?xm")


def test_a_plot_that_cannot_be_drawn_is_refused(checkpoint: Path, spec: Path, tmp_path: Path) -> None:
    results = tmp_path / "first.h5"
    assert ".png" in running.refused("inspect", results, "--plot", tmp_path / "plot.txt")
    assert "cannot be written" in running.refused("inspect", results, "--plot", tmp_path / "no" / "plot.png")
    refused(spec, "train.optimizer.lr=1e38", code=1)
    assert "no steps yet" in running.refused("inspect", tmp_path / "refused.h5", "--plot", tmp_path / "p.png")


def test_names_that_look_like_markup_are_printed_as_they_are(spec: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[bold] :smile:"
    folder.mkdir()
    out = folder / "[red]x.h5"
    code, printed, _ = running.cli("run", spec, "--out", out, "--set", "name='[b]:cat:'")
    assert code == 0
    assert f"Results in {out};" in printed
    assert "[b]:cat:: mlp on npz" in printed
    assert running.cli("inspect", out)[1].startswith("[b]:cat:: mlp on npz")


def test_a_checkpoint_keeps_all_digits_of_a_float64_run(spec: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first.h5", tmp_path / "again.h5"
    weights = tmp_path / "dense.safetensors"
    assert running.cli("run", spec, "--out", first, "--set", "dtype=float64")[0] == 0
    assert running.cli("export", first, "--weights", weights, "--phase", "dense")[0] == 0

    settings = ("--set", "dtype=float64", "--set", "model.checkpoint=dense.safetensors")
    assert running.cli("run", spec, "--out", again, *settings)[0] == 0

    with pk.open(first) as one, pk.open(again) as other:
        for name, array in one.weights("dense").items():
            assert np.array_equal(other.weights("dense")[name], array)
