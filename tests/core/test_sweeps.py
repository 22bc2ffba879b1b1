"""Many runs in one folder: which they are, and that nothing is lost whoever dies."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import pytest
import running
import torch

import prunekit as pk
from prunekit.plugins.host import default_manager
from prunekit.results import ResultsWriter
from prunekit.results.claim import lock_path
from prunekit.sweeps import work
from prunekit.sweeps.folder import Folder
from prunekit.sweeps.plan import load
from prunekit.training.loop import Trainer

GRID = """\
base: small.yaml
parameters:
  prune.criterion: {values: [magnitude, {name: lm, lambda: 0.1}]}
  prune.scheduler.steps: {values: [1, 3]}
seeds: 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    running.write_data(tmp_path / "data.npz")
    running.write_spec(tmp_path)
    return tmp_path


def written(folder: Path, text: str = GRID) -> Path:
    path = folder / "grid.yaml"
    path.write_text(text)
    return path


def parameters(path: Path) -> list[dict[str, Any]]:
    return [dict(one.parameters) for one in load(path).runs]


def contents(place: Path) -> dict[str, Any]:
    """What all results files hold, but times; threads are the executor's business."""
    found = {}
    for file in sorted(place.glob("*.h5")):
        found[file.name] = running.contents(file)
    return found


def test_every_combination_is_a_run(folder: Path) -> None:
    found = parameters(written(folder))
    assert len(found) == 8
    assert found[0] == {"prune.criterion": "magnitude", "prune.scheduler.steps": 1, "seed": 0}
    assert found[-1]["prune.criterion"] == {"name": "lm", "lambda": 0.1}
    keys = [one.key for one in load(written(folder)).runs]
    assert len(set(keys)) == 8
    assert keys == [one.key for one in load(written(folder)).runs]
    assert {one.spec.settings.seed for one in load(written(folder)).runs} == {0, 1}


def test_parameters_that_go_together_filters_and_ranges(folder: Path) -> None:
    found = parameters(
        written(
            folder,
            "base: small.yaml\n"
            "parameters:\n"
            "  prune.criterion.name: {values: [lm, qm]}\n"
            "  prune.criterion.lambda: {values: [0.1, 0.2]}\n"
            "  prune.scheduler.steps: {range: [1, 4]}\n"
            "  seed: {range: [2]}\n"
            "zip: [[prune.criterion.name, prune.criterion.lambda]]\n"
            "exclude: [{seed: 1, prune.scheduler.steps: 3}, {prune.criterion.name: qm, seed: 1}]\n"
            "only: [{prune.scheduler.steps: 3}, {prune.criterion.name: qm}]\n",
        )
    )
    pairs = [
        (p["prune.criterion.name"], p["prune.criterion.lambda"], p["prune.scheduler.steps"], p["seed"])
        for p in found
    ]
    assert pairs == [("lm", 0.1, 3, 0), ("qm", 0.2, 1, 0), ("qm", 0.2, 2, 0), ("qm", 0.2, 3, 0)]


def test_the_base_may_stand_in_the_sweep_and_equal_runs_are_one(folder: Path) -> None:
    base = json.dumps({**running.mapping(folder), "seed": 3})
    found = load(written(folder, f"base: {base}\nparameters: {{seed: {{values: [3, 4, 3]}}}}\n")).runs
    assert [one.parameters["seed"] for one in found] == [3, 4]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parameters: {}\n", "grid.yaml:1:1: base: missing"),
        ("base: absent.yaml\n", "absent.yaml: cannot be read"),
        ("base: small.yaml\nparametres: {}\n", "grid.yaml:2:1: parametres: unknown"),
        ("base: small.yaml\nparameters:\n  seed: {values: []}\n", "grid.yaml:3:10: parameters.seed.values"),
        ("base: small.yaml\nparameters:\n  seed: {range: [3, 1]}\n", "has no numbers"),
        ("base: small.yaml\nparameters:\n  seed: {values: [1], range: [2]}\n", "values or range, and one of them"),
        (
            "base: small.yaml\nparameters:\n  seed: {values: [1]}\nzip: [[seed, far]]\n",
            "far: is no parameter; there are seed",
        ),
        (
            "base: small.yaml\nparameters:\n  seed: {values: [1]}\n  prune.examples: {values: [1, 2]}\n"
            "zip: [[seed, prune.examples]]\n",
            "seed has 1, prune.examples has 2 values",
        ),
        ("base: small.yaml\nseeds: 2\nexclude: [{lambda: 1}]\n", "lambda: is no parameter; there are seed"),
        ("base: small.yaml\nseeds: 2\nexclude: [{seed: 0}, {seed: 1}]\n", "no combination is left"),
        ("base: small.yaml\nparameters: {seed: {values: [1]}}\nseeds: 2\n", "has values already"),
        (
            "base: small.yaml\nparameters: {prune.criterion.name: {values: [qn]}}\n",
            'did you mean.*with prune.criterion.name="qn"',
        ),
        ("base: small.yaml\nparameters: {seed: {range: [1000000]}}\n", "at most 100,000"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_be_is_refused_with_its_place(text: str, said: str, folder: Path) -> None:
    with pytest.raises(pk.SpecError, match=said):
        load(written(folder, text))


def test_a_sweep_is_run_listed_and_read_as_one_table(folder: Path) -> None:
    path = written(folder)
    code, out, _ = running.cli("sweep", path, "--dry-run", "--json")
    assert code == 0
    assert [run["status"] for run in json.loads(out)] == ["missing"] * 8
    assert not (folder / "grid").exists()
    code, out, err = running.cli("sweep", path)
    assert code == 0
    assert "8 complete" in out
    assert "sweep 8/8" in err
    sweep = pk.open_sweep(folder / "grid")
    assert sweep.counts == {"complete": 8}
    assert sweep.protocols == 1
    for row in sweep.rows():
        with pk.open(folder / "grid" / f"{row['key']}.h5") as results:
            assert row["pruned_test_loss"] == results.summary["pruned"]["test_loss"]
            assert row["seed"] == results.summary["spec"]["seed"]
    frame = pytest.importorskip("pandas") and sweep.frame()
    assert frame["steps"].tolist() == [row["prune.scheduler.steps"] for row in sweep.rows()]
    before = {file: file.stat().st_mtime_ns for file in (folder / "grid").glob("*.h5")}
    assert running.cli("sweep", path)[0] == 0
    assert before == {file: file.stat().st_mtime_ns for file in (folder / "grid").glob("*.h5")}  # none again
    code, out, _ = running.cli("inspect", folder / "grid")
    assert code == 0
    assert "lm (lambda=0.1000)" in out
    assert "about" not in running.cli("sweep", path, "--dry-run")[1]


def test_what_stands_in_the_folder_is_told_apart(folder: Path) -> None:
    path = written(folder)
    assert running.cli("sweep", path)[0] == 0
    place = folder / "grid"
    keys = [one.key for one in load(path).runs]
    (place / f"{keys[0]}.h5").unlink()
    (place / f"{keys[1]}.h5").write_bytes(b"torn")
    with h5py.File(place / f"{keys[2]}.h5", "r+") as file:
        status = file.attrs["status"]
        file.attrs.modify("status", type(status)(b"running"))
    (place / "guest.h5").write_bytes((place / f"{keys[3]}.h5").read_bytes())
    Folder(place).fail(keys[4], "Traceback\nRunError: so it goes\n")
    (place / f"{keys[4]}.h5").unlink()
    found = {run.key: run for run in pk.open_sweep(place).runs}
    assert [found[key].status for key in keys[:5]] == [
        "missing",
        "unfinished",
        "unfinished",
        "complete",
        "failed",
    ]
    assert found["guest"].status == "foreign"
    assert "so it goes" in found[keys[4]].failure
    assert "failed: RunError: so it goes" in running.cli("inspect", place)[1]
    with pytest.raises(pk.ResultsError, match="is not the folder of a sweep"):
        pk.open_sweep(folder)


def test_failures_keep_their_traceback_and_are_tried_again_when_asked(folder: Path) -> None:
    path = written(folder, "base: small.yaml\nparameters: {train.optimizer.lr: {values: [0.1, 1e38]}}\n")
    code, out, _ = running.cli("sweep", path)
    assert code == 1
    assert "1 complete, 1 failed" in out
    (failed,) = [run for run in pk.open_sweep(folder / "grid").runs if run.status == "failed"]
    assert failed.failure.startswith("RunError: ")
    made = (folder / "grid" / f"{failed.key}.failure.txt").stat().st_mtime_ns
    assert running.cli("sweep", path)[0] == 1
    assert (folder / "grid" / f"{failed.key}.failure.txt").stat().st_mtime_ns == made  # not tried
    assert running.cli("sweep", path, "--retry", "failed")[0] == 1
    assert (folder / "grid" / f"{failed.key}.failure.txt").stat().st_mtime_ns > made
    assert "accepted is failed" in running.refused("sweep", path, "--retry", "all")


def test_a_run_that_another_machine_has_taken_over_is_no_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = load(written(folder, "base: small.yaml\nseeds: 1\n"))
    sweep = Folder(folder / "grid")
    sweep.begin(plan)
    out = sweep.output(plan.runs[0].key)
    lock, epoch, looked = lock_path(out), Trainer.epoch, []

    def robbed(self: Trainer, index: int) -> Any:
        record = {"token": "x", "host": "elsewhere", "process": 1, "since": "now"}
        lock.write_text('{"prunekit-lock": 1, ' + json.dumps(record)[1:])
        return epoch(self, index)

    def later(seconds: float) -> None:
        """While this one waits, the other dies."""
        looked.append(sweep.failure(plan.runs[0].key))
        monkeypatch.undo()
        os.utime(lock, (0, 0))

    monkeypatch.setattr(Trainer, "epoch", robbed)
    monkeypatch.setattr(work, "time", SimpleNamespace(sleep=later))
    told: list[str] = []
    work.work(plan, sweep, default_manager(), lambda one, what: told.append(what))
    assert looked == [""]
    assert told == ["started", "started", "complete"]
    assert pk.open_sweep(folder / "grid").counts == {"complete": 1}


def started(path: Path, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "prunekit_cli", "sweep", str(path), *more],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def children(process: subprocess.Popen[bytes]) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in found.read_text().split()] if found.exists() else []


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_workers_that_are_killed_and_two_sweeps_at_once_end_with_the_same_numbers(
    kills: int, folder: Path
) -> None:
    """With ten kills, forty runs: five seeds of each combination."""
    seeds = 1 if kills < 10 else 10
    path = written(folder, GRID.replace("seeds: 2", f"seeds: {seeds}"))
    whole = folder / "whole"
    assert started(path, "--out", str(whole), "--workers", "1", "--threads", "1").wait(600) == 0
    draw = random.Random(1)
    both = [
        started(path, "--workers", "2", "--threads", "1"),
        started(path, "--workers", "1", "--threads", "1"),
    ]
    killed, until = 0, time.monotonic() + 600
    while killed < kills and any(one.poll() is None for one in both) and time.monotonic() < until:
        time.sleep(draw.uniform(0.5, 2.5))
        workers = [pid for one in both if one.poll() is None for pid in children(one)]
        if workers:
            try:
                os.kill(draw.choice(workers), signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                pass
    assert [one.wait(600) for one in both] == [0, 0]
    assert killed >= 1
    assert contents(folder / "grid") == contents(whole)
    assert pk.open_sweep(folder / "grid").counts == {"complete": 4 * seeds}


def test_a_machine_that_is_lost_loses_nothing(folder: Path) -> None:
    path = written(folder)
    process = started(path, "--workers", "2", "--threads", "1")
    until = time.monotonic() + 300
    while len(list((folder / "grid").glob("*.h5"))) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    for pid in (*children(process), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert started(path, "--workers", "2", "--threads", "1").wait(300) == 0
    assert pk.open_sweep(folder / "grid").counts == {"complete": 8}
    assert started(path, "--out", str(folder / "whole"), "--workers", "1", "--threads", "1").wait(300) == 0
    assert contents(folder / "grid") == contents(folder / "whole")


def test_reading_a_sweep_needs_no_torch(folder: Path) -> None:
    assert running.cli("sweep", written(folder, "base: small.yaml\nseeds: 1\n"))[0] == 0
    code = f"import sys, prunekit; prunekit.open_sweep({str(folder / 'grid')!r}).rows(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_the_dense_network_of_a_seed_is_trained_once_and_nothing_else_changes(
    workers: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(folder, GRID + "exclude: [{prune.criterion: magnitude, prune.scheduler.steps: 1}]\n")
    if workers == 1:
        epochs: list[int] = []
        epoch = Trainer.epoch

        def counted(self: Trainer, index: int) -> Any:
            epochs.append(index)
            return epoch(self, index)

        monkeypatch.setattr(Trainer, "epoch", counted)
        assert running.cli("sweep", path)[0] == 0
        assert len(epochs) == 2 * 3 + 6 * 2  # three epochs for each seed, and two of fine-tuning for each run
        monkeypatch.undo()
    else:
        assert started(path, "--workers", "2", "--threads", str(torch.get_num_threads())).wait(300) == 0
    for one in load(path).runs:
        alone = folder / f"{one.key}.alone.h5"
        pk.run(folder / "small.yaml", alone, one.parameters).close()
        assert running.contents(folder / "grid" / f"{one.key}.h5") == running.contents(alone)


@pytest.mark.parametrize("writing", ["add_epoch", "add_phase", "add_step"])
def test_a_run_that_is_stopped_while_it_takes_another_ones_network_goes_on(
    writing: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(folder, GRID.replace("seeds: 2", "seeds: 1"))
    assert running.cli("sweep", path, "--out", folder / "whole")[0] == 0
    first, second = load(path).runs[0], load(path).runs[1]
    assert first.parameters["seed"] == second.parameters["seed"]
    place = Folder(folder / "grid")
    place.begin(load(path))
    place.output(first.key).write_bytes((folder / "whole" / f"{first.key}.h5").read_bytes())
    calls, method = [], getattr(ResultsWriter, writing)

    def stopping(self: ResultsWriter, *arguments: Any, **more: Any) -> None:
        method(self, *arguments, **more)
        calls.append(writing)
        if len(calls) == (2 if writing == "add_epoch" else 1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ResultsWriter, writing, stopping)
        assert running.cli("sweep", path)[0] == 130
    assert running.cli("sweep", path)[0] == 0
    assert contents(folder / "grid") == contents(folder / "whole")
