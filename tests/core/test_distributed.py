"""Several processes find what one finds, and end together."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import sharing
import torch

import prunekit as pk
from prunekit.observing.listener import Listener

WORLDS = [2, 3]
AWKWARD = """\
version: 1
name: awkward
device: cpu
dtype: float64
model: {name: python, factory: "running:convnet"}
dataset: {name: npz, path: data.npz}
train: {epochs: 2, batch_size: 50, optimizer: {name: adam, lr: 0.01}}
prune:
  criterion: random
  scheduler: {name: linear, sparsity: 0.6, steps: 2}
  examples: 30
  recalibrate_batchnorm: 40
"""
SPECS = {
    "mlp": running.YAML.replace("device: cpu", "device: cpu\ndtype: float64"),
    "awkward": AWKWARD,
    # Fewer examples than processes, wherever there is a choice.
    "few": running.YAML.replace("device: cpu", "device: cpu\ndtype: float64").replace(
        "examples: 50", "examples: 2\nevaluate: {train_examples: 1}"
    ),
}


@pytest.fixture(scope="module")
def processes() -> Any:
    """Starts processes quickly: from a server that has imported torch but never computed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "prunekit_cli.run", "prunekit.runs.run", "sharing"])
    return context


def run(processes: Any, folder: Path, world: int, *arguments: Any) -> list[tuple[int, str, str]]:
    return sharing.launch(processes, folder, world, sharing.command, "run", *arguments)


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    """Numbers anywhere inside are close, everything else is equal."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            if key not in ("seconds", "environment", "resumptions"):
                assert_close(found[key], expected[key], tolerance)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for mine, theirs in zip(found, expected, strict=True):
            assert_close(mine, theirs, tolerance)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)
    else:
        assert found == expected


def assert_same_run(found: Path, expected: Path) -> None:
    """Masks and examples bit for bit, numbers to float64's rounding."""
    with pk.open(found) as one, pk.open(expected) as other:
        assert_close(one.summary, other.summary, 1e-9)
        for step in range(1, len(other.summary["steps"]) + 1):
            np.testing.assert_array_equal(one.examples(step), other.examples(step))
            masks = other.masks(step)
            for name, mask in one.masks(step).items():
                np.testing.assert_array_equal(mask, masks[name])
        for phase in ("dense", "pruned", "finetuned"):
            if other.summary[phase] is not None:
                weights = other.weights(phase)
                for name, values in one.weights(phase).items():
                    np.testing.assert_allclose(values, weights[name], rtol=1e-9, atol=1e-12)


# -- in Python -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=WORLDS)
def library(request: pytest.FixtureRequest, processes: Any, tmp_path_factory: Any) -> list[dict[str, Any]]:
    """What each process of a group of the caller's found."""
    folder = tmp_path_factory.mktemp("library")
    for code, _, err in sharing.launch(processes, folder, request.param, sharing.library, folder):
        assert code == 0, err
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return sharing.found(0, 1)


def test_statistics_saliencies_and_masks_of_parts_are_those_of_the_whole(
    library: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    for key, expected in alone.items():
        if "float64" in key:
            found = library[0]["found"][key]
            assert all(torch.equal(m, found["masks"][name]) for name, m in expected["masks"].items())
            assert_close(found, expected, 1e-12)
        else:
            assert_close(library[0]["found"][key]["statistics"], expected["statistics"], 1e-4)


def test_every_process_ends_with_the_same_bits(library: list[dict[str, Any]]) -> None:
    first = library[0]["found"]
    for other in library[1:]:
        for key, expected in first.items():
            found = other["found"][key]
            assert found["steps"] == expected["steps"]
            parts = [found["statistics"][s] for s in found["statistics"]]
            rest = ("saliency", "masks", "weights", "ggn", "hessian", "empirical_fisher")
            parts += [found[part] for part in rest]
            truth = [expected["statistics"][s] for s in expected["statistics"]]
            truth += [expected[part] for part in rest]
            for mine, theirs in zip(parts, truth, strict=True):
                assert all(torch.equal(t, theirs[name]) for name, t in mine.items())


def test_an_error_in_one_process_ends_the_call_in_all(library: list[dict[str, Any]]) -> None:
    world = len(library)
    for rank, one in enumerate(library):
        batches, network, nothing, additive = one["errors"]
        if rank == world - 1:
            assert batches == "OSError: the disk is gone"
        else:
            assert batches == f"RunError: process {world - 1} failed with OSError: the disk is gone"
        assert network.startswith(f"RunError: processes 0 and {world - 1} do not hold the same")
        assert nothing.startswith("DataError: the batches hold no examples")
        assert additive.startswith("UnsupportedError: statistic 'median'")


# -- the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "world"), [("mlp", 2), ("awkward", 3), ("few", 3)])
def test_a_run_of_several_processes_is_that_of_one(
    name: str, world: int, processes: Any, tmp_path: Path
) -> None:
    spec, out = running.write_spec(tmp_path, SPECS[name]), tmp_path / "out.h5"
    pk.run(spec, tmp_path / "one.h5").close()
    found = run(processes, tmp_path, world, spec, "--out", out)
    assert [code for code, _, _ in found] == [0] * world, found
    assert_same_run(out, tmp_path / "one.h5")
    assert all(out == err == "" for _, out, err in found[1:])
    assert "complete" in found[0][1]
    assert "prune 2/" in found[0][2]
    assert not (tmp_path / "out.h5.state").exists()
    with pk.open(out) as results:
        assert results.summary["environment"]["world"] == world


def test_probes_that_rank_find_in_several_processes_what_they_find_in_one(
    processes: Any, tmp_path: Path
) -> None:
    probes = """
  - {name: oracle, weights: 40, resamples: 5, moments: [dense, step]}
  - {name: stability, examples: [3, 20], repeats: 3}
  - {name: layers}"""
    text = SPECS["mlp"].split("probes:")[0] + f"probes:{probes}\n"
    spec, out = running.write_spec(tmp_path, text), tmp_path / "out.h5"
    pk.run(spec, tmp_path / "one.h5").close()
    found = run(processes, tmp_path, 3, spec, "--out", out)
    assert [code for code, _, _ in found] == [0] * 3, found
    with pk.open(out) as several, pk.open(tmp_path / "one.h5") as one:
        for label in ("oracle", "stability", "layers"):
            for moment in one.moments(label):
                for group, arrays in one.probe(label, moment).items():
                    for key, values in arrays.items():
                        its = several.probe(label, moment)[group][key]
                        np.testing.assert_allclose(
                            its, values, rtol=1e-6, atol=1e-11, err_msg=f"{label} {key}"
                        )


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return running.write_spec(tmp_path, SPECS["mlp"])


def test_torchrun_gives_the_masks_of_one_process(spec: Path, tmp_path: Path) -> None:
    pk.run(spec, tmp_path / "one.h5").close()
    out = tmp_path / "out.h5"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "prunekit_cli", "run", str(spec), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("complete") == 1
    assert_same_run(out, tmp_path / "one.h5")


@pytest.mark.parametrize("after", [2, 4])
def test_several_processes_go_on_where_one_was_interrupted(
    after: int, spec: Path, processes: Any, tmp_path: Path
) -> None:
    class Stop(Listener):
        left = after

        def epoch(self, *_: Any) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

        step = epoch

    pk.run(spec, tmp_path / "one.h5").close()
    out = tmp_path / "out.h5"
    with pytest.raises(KeyboardInterrupt):
        pk.run(spec, out, listener=Stop())
    found = run(processes, tmp_path, 2, spec, "--out", out, "--resume")
    assert [code for code, _, _ in found] == [0, 0], found
    assert_same_run(out, tmp_path / "one.h5")
    assert not (tmp_path / "out.h5.state").exists()
    with pk.open(out) as results:
        (resumption,) = results.summary["resumptions"]
    assert resumption["changes"]["world"] == {"before": 1, "now": 2}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed=8", "out.h5: exists"),
        ("prune.criterion=qn", "did you mean"),
        ("dataset.path=gone.npz", "gone.npz"),
    ],
)
def test_what_is_refused_is_refused_by_all_and_said_once(
    setting: str, message: str, spec: Path, processes: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out.h5"
    there = b"\x89HDF\r\n\x1a\n of prunekit-results"
    out.write_bytes(there)
    options = [] if "exists" in message else ["--overwrite"]
    found = run(processes, tmp_path, 2, spec, "--out", out, "--set", setting, *options)
    assert [code for code, _, _ in found] == [2, 2], found
    assert message in found[0][2]
    assert "Traceback" not in found[0][2]
    assert found[1][1:] == ("", "")
    assert out.read_bytes() == there


def test_a_process_that_fails_ends_the_run_of_all(spec: Path, processes: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    found = run(
        processes,
        tmp_path,
        2,
        spec,
        "--out",
        out,
        "--set",
        "model={name: python, factory: 'sharing:fragile'}",
    )
    assert [code for code, _, _ in found] == [1, 1], found
    assert "process 1 failed with ArithmeticError: this device is broken" in found[0][2]
    assert "Traceback" in found[1][2]
    with pk.open(out) as results:
        assert results.summary["status"] == "failed"
        assert "this device is broken" in json.dumps(results.summary["environment"])


def test_one_process_that_is_killed_ends_the_others(processes: Any, tmp_path: Path) -> None:
    text = SPECS["mlp"].replace(
        "model: {name: mlp, hidden: [6]}", "model: {name: python, factory: 'sharing:mortal'}"
    )
    found = run(processes, tmp_path, 2, running.write_spec(tmp_path, text), "--out", tmp_path / "out.h5")
    assert [code for code, _, _ in found] == [1, -9], found
    assert "another process has ended" in found[0][2]
    with pk.open(tmp_path / "out.h5") as results:
        assert results.summary["status"] == "failed"
