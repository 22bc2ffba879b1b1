"""Many runs in one folder: which they are, and that nothing is lost whoever dies."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import running
import torch

import prunekit as pk
from prunekit.plugins.host import default_manager
from prunekit.pruning import sample
from prunekit.results import ResultsWriter
from prunekit.results.claim import lock_path
from prunekit.runs import plan as setup
from prunekit.runs.shared import Shared
from prunekit.sweeps import work
from prunekit.sweeps.estimate import estimate
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


@contextmanager
def one_thread() -> Iterator[None]:
    """As workers have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
        ("base: small.yaml\nparameters:\n  seed: {values: [1], range: [2]}\n", "either values or range"),
        (
            "base: small.yaml\nparameters:\n  seed: {values: [1]}\nzip: [[seed, far]]\n",
            "far: is not a parameter; there are seed",
        ),
        (
            "base: small.yaml\nparameters:\n  seed: {values: [1]}\n  prune.examples: {values: [1, 2]}\n"
            "zip: [[seed, prune.examples]]\n",
            "seed has 1, prune.examples has 2 values",
        ),
        ("base: small.yaml\nseeds: 2\nexclude: [{lambda: 1}]\n", "lambda: is not a parameter; there are seed"),
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
    code, out, err = running.cli("sweep", path, "--workers", "1")
    assert code == 0
    assert "8 complete" in out
    assert "sweep 8/8" in err
    sweep = pk.open_sweep(folder / "grid")
    assert sweep.counts == {"complete": 8}
    assert list(sweep.protocols.values()) == [8]
    assert next(iter(sweep.protocols)) in out
    for row in sweep.rows():
        with pk.open(folder / "grid" / f"{row['key']}.h5") as results:
            assert row["pruned_test_loss"] == results.summary["pruned"]["test_loss"]
            assert row["seed"] == results.summary["spec"]["seed"]
    frame = pytest.importorskip("pandas") and sweep.frame()
    assert frame["steps"].tolist() == [row["prune.scheduler.steps"] for row in sweep.rows()]
    before = {file: file.stat().st_mtime_ns for file in (folder / "grid").glob("*.h5")}
    assert running.cli("sweep", path, "--workers", "1")[0] == 0
    assert before == {file: file.stat().st_mtime_ns for file in (folder / "grid").glob("*.h5")}  # none again
    code, out, _ = running.cli("inspect", folder / "grid")
    assert code == 0
    assert "lm (lambda=0.1)" in out
    assert "about" not in running.cli("sweep", path, "--dry-run")[1]


def test_what_stands_in_the_folder_is_told_apart(folder: Path) -> None:
    path = written(folder)
    assert running.cli("sweep", path, "--workers", "1")[0] == 0
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
    with pytest.raises(pk.ResultsError, match="is neither the folder of a sweep"):
        pk.open_sweep(folder)


def test_failures_keep_their_traceback_and_are_tried_again_when_asked(folder: Path) -> None:
    path = written(folder, "base: small.yaml\nparameters: {train.optimizer.lr: {values: [0.1, 1e38]}}\n")
    code, out, _ = running.cli("sweep", path, "--workers", "1")
    assert code == 1
    assert "1 complete, 1 failed" in out
    (failed,) = [run for run in pk.open_sweep(folder / "grid").runs if run.status == "failed"]
    assert failed.failure.startswith("Traceback")
    assert "RunError: " in failed.failure.splitlines()[-1]
    made = (folder / "grid" / f"{failed.key}.failure.txt").stat().st_mtime_ns
    assert running.cli("sweep", path, "--workers", "1")[0] == 1
    assert (folder / "grid" / f"{failed.key}.failure.txt").stat().st_mtime_ns == made  # not tried
    assert running.cli("sweep", path, "--workers", "1", "--retry", "failed")[0] == 1
    assert (folder / "grid" / f"{failed.key}.failure.txt").stat().st_mtime_ns > made
    assert "accepted is failed" in running.refused("sweep", path, "--retry", "all")


WITHOUT_TRAINING = """\
base: small.yaml
parameters:
  finetune: {values: [null]}
  model.checkpoint: {values: [dense.h5]}
  prune.scheduler.steps: {values: [2]}
  prune.criterion.name: {values: [magnitude, lm, qm, obs_block]}
  prune.criterion.lambda: {values: [0.001, 0.1, 1.0]}
"""


def test_runs_from_one_network_share_what_they_estimate_and_measure_of_it_and_nothing_else_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with one_thread():
        pk.run(folder / "small.yaml", folder / "dense.h5", {"prune": None, "finetune": None}).close()
    path = written(folder, WITHOUT_TRAINING)
    passes: list[tuple[str, ...]] = []
    loads: list[int] = []
    estimate, load_data = sample.estimate, setup.load_data

    def counted(model: Any, batches: Any, estimators: Any, *more: Any) -> Any:
        passes.append(tuple(sorted(e.name for e in estimators.values())))
        return estimate(model, batches, estimators, *more)

    def loaded(spec: Any) -> Any:
        loads.append(1)
        return load_data(spec)

    monkeypatch.setattr(sample, "estimate", counted)
    monkeypatch.setattr(setup, "load_data", loaded)
    assert running.cli("sweep", path, "--workers", "1")[0] == 0
    # Three criteria estimate, at the first of two steps once for all λ, at the second each run for itself.
    assert len(passes) == 3 + 9
    assert len(loads) == 1
    for one in load(path).runs:
        alone = folder / f"{one.key}.alone.h5"
        with one_thread():
            pk.run(folder / "small.yaml", alone, one.parameters).close()
        assert running.contents(folder / "grid" / f"{one.key}.h5") == running.contents(alone)


def test_after_a_failure_nothing_is_shared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with one_thread():
        pk.run(folder / "small.yaml", folder / "dense.h5", {"prune": None, "finetune": None}).close()
    kept: list[int] = []
    clear = Shared.clear

    def cleared(self: Shared) -> None:
        kept.append(len(self._kept))
        clear(self)
        assert not self._kept

    def failing(self: Any, weights: Any, statistics: Any) -> Any:
        statistics["gradient"]["1.weight"].mul_(2)
        return {name: w.abs() for name, w in weights.items()}

    monkeypatch.setattr(Shared, "clear", cleared)
    monkeypatch.setattr(default_manager().get("criterion", "lm"), "saliency", failing)
    path = written(folder, WITHOUT_TRAINING.replace("magnitude, lm, qm, obs_block", "lm, qm"))
    assert running.cli("sweep", path, "--workers", "1")[0] == 1
    assert len(kept) == 3
    assert all(kept)
    monkeypatch.undo()
    for one in load(path).runs[3:]:
        alone = folder / f"{one.key}.alone.h5"
        with one_thread():
            pk.run(folder / "small.yaml", alone, one.parameters).close()
        assert running.contents(folder / "grid" / f"{one.key}.h5") == running.contents(alone)


def test_results_of_an_earlier_text_are_foreign(folder: Path) -> None:
    path = written(folder, "base: small.yaml\nseeds: 2\n")
    assert running.cli("sweep", path, "--workers", "1")[0] == 0
    path.write_text("base: small.yaml\nseeds: [1]\nparameters: {prune.examples: {values: [50, 40]}}\n")
    assert running.cli("sweep", path, "--workers", "1")[0] == 0
    assert pk.open_sweep(folder / "grid").counts == {"complete": 2, "foreign": 1}
    assert len(pk.open_sweep(folder / "grid").rows()) == 2


def test_complete_runs_of_files_that_have_changed_are_refused_and_kept(folder: Path) -> None:
    path = written(folder, "base: small.yaml\nseeds: 2\n")
    assert running.cli("sweep", path, "--workers", "1")[0] == 0
    before = contents(folder / "grid")
    running.write_data(folder / "data.npz", train=121)
    said = running.refused("sweep", path, "--workers", "1")
    assert "2 runs (" in said
    assert "read files that have changed since; give another --out" in said
    assert contents(folder / "grid") == before
    assert running.cli("sweep", path, "--workers", "1", "--out", folder / "other")[0] == 0


def test_a_run_that_kills_its_worker_each_time_fails_and_the_others_are_done(folder: Path) -> None:
    (folder / "deadly.py").write_text(
        "import os, signal, torch\n\n\ndef build(data=None):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    base = {**running.mapping(folder), "finetune": None}
    models = [base["model"], {"name": "python", "factory": "deadly:build"}]
    path = written(folder, json.dumps({"base": base, "parameters": {"model": {"values": models[::-1]}}}))
    sys.path.append(str(folder))
    try:
        code, out, _ = running.alone("sweep", path, "--workers", "2")
    finally:
        sys.path.remove(str(folder))
    assert code == 1
    assert "1 complete, 1 failed" in out or "1 failed, 1 complete" in out
    assert "its worker was killed 3 times at the same place of this run" in out
    assert not list((folder / "grid").glob("*.starts"))


def test_the_index_may_be_torn_or_gone(folder: Path) -> None:
    path = written(folder, "base: small.yaml\nseeds: 2\n")
    assert running.cli("sweep", path, "--workers", "1")[0] == 0
    rows, index = pk.open_sweep(folder / "grid").rows(), folder / "grid" / "index.jsonl"
    assert len(index.read_text().splitlines()) == 2
    index.write_text(index.read_text()[:-40])
    assert pk.open_sweep(folder / "grid").rows() == rows
    index.unlink()
    assert pk.open_sweep(folder / "grid").rows() == rows
    index.write_text(index.read_text() * 200)
    assert pk.open_sweep(folder / "grid").rows() == rows
    assert len(index.read_text().splitlines()) == 2


def test_the_rest_is_estimated_by_what_is_most_like_it(folder: Path) -> None:
    path = written(folder)
    assert running.cli("sweep", path, "--workers", "1")[0] == 0
    plan, found = load(path), {run.key: run for run in pk.open_sweep(folder / "grid").runs}
    like = [one for one in plan.runs if one.parameters["prune.scheduler.steps"] == 3]
    first = next(one for one in like if one.parameters["prune.criterion"] == "magnitude")
    twin = next(
        one for one in like if one.key != first.key and one.parameters["prune.criterion"] == "magnitude"
    )
    done = [run for key, run in found.items() if key != first.key]
    seconds, memory, count = estimate([first], done) or (0, 0, 0)
    assert seconds == found[twin.key].row["seconds"]
    assert memory == max(run.row["peak_memory"] for run in done) > 1 << 20
    assert count == 7
    assert estimate([first], []) is None
    (folder / "grid" / f"{first.key}.h5").unlink()
    out = running.cli("sweep", path, "--dry-run")[1]
    assert "1 are left: about" in out
    assert "from the 7 that are done" in out


def test_a_sweep_is_drawn_and_its_runs_compared(folder: Path) -> None:
    path = written(folder)
    assert "nothing to draw" in running.refused("inspect", begun(path, folder), "--plot", folder / "x.png")
    assert "no run of the sweep is complete" in running.refused("compare", folder / "grid")
    assert running.cli("sweep", path, "--workers", "1")[0] == 0
    for name in ("grid.png", "grid.pdf", "grid.svg"):
        assert running.cli("inspect", folder / "grid", "--plot", folder / name)[0] == 0
        assert (folder / name).stat().st_size > 1000
    drawn = (folder / "grid.svg").read_text()
    for text in ("magnitude", "lm", "λ", "prune.scheduler.steps = 3"):
        assert text in drawn
    code, out, _ = running.cli("compare", folder / "grid", "--json")
    assert code == 0
    assert len(json.loads(out)["runs"]) == 8
    lines = running.cli("compare", folder / "grid", folder / "grid")[
        1
    ].splitlines()  # too many to stand side by side
    assert lines[2].split()[:2] == ["run", "seed"]
    assert sum(load(path).runs[0].key in line for line in lines) >= 4  # twice there, in two tables
    said = running.refused("inspect", folder / "grid", "--layers", "--verify")
    assert "is a folder, perhaps of a sweep; --layers, --verify: is for a results file" in said
    assert "--plot where it goes" in running.refused("inspect", folder / "grid", "--columns", "1")


def test_runs_that_differ_in_their_seeds_are_one_row_with_mean_and_deviation(folder: Path) -> None:
    path = written(folder, GRID.replace("seeds: 2", "seeds: 3"))
    assert running.cli("sweep", path, "--workers", "1")[0] == 0
    sweep = pk.open_sweep(folder / "grid")
    rows = sweep.over_seeds()
    assert [(row["runs"], row["complete"]) for row in rows] == [(3, 3)] * 4
    for row in rows:
        same = [
            one["train_delta_loss"]
            for one in sweep.rows()
            if one["criterion"] == row["criterion"] and one["steps"] == row["prune.scheduler.steps"]
        ]
        assert row["train_delta_loss"] == pytest.approx(np.mean(same), rel=1e-12)
        assert row["train_delta_loss_sd"] == pytest.approx(np.std(same, ddof=1), rel=1e-12)
        assert "seed" not in row
    frame = pytest.importorskip("pandas") and sweep.frame(seeds=False)
    assert frame["pruned_test_error_sd"].notna().all()
    out = running.cli("inspect", folder / "grid")[1]
    assert "Means over seeds" in out
    assert "3 of 3" in out
    (folder / "grid" / f"{load(path).runs[0].key}.h5").unlink()
    again = pk.open_sweep(folder / "grid").over_seeds()
    assert again[0]["complete"] == 2
    assert again[0]["train_delta_loss"] != rows[0]["train_delta_loss"]
    assert again[1:] == rows[1:]


def test_rows_of_several_protocols_are_told_with_their_marks(folder: Path) -> None:
    path = written(
        folder, "base: small.yaml\nparameters: {evaluate.train_examples: {values: [null, 50]}}\nseeds: 2\n"
    )
    code, out, _ = running.cli("sweep", path, "--workers", "1")
    assert code == 0
    marks = pk.open_sweep(folder / "grid").protocols
    assert list(marks.values()) == [2, 2]
    assert "under 2 protocols" in out
    assert all(f"{mark} (2)" in out for mark in marks)


def begun(path: Path, folder: Path) -> Path:
    place = Folder(folder / "grid")
    place.begin(load(path))
    return place.path


@pytest.mark.parametrize(
    ("executor", "said"),
    [
        ("proces", "grid.yaml:2:1: executor: unknown executor 'proces'; did you mean 'process'"),
        ("{gpus: 1}", "grid.yaml:2:1: executor: needs a name; there are inline, process"),
        ("{name: ray, gpu: 1}", "executor.gpu: unknown key 'gpu'; did you mean 'gpus'"),
        ("{name: submitit, minutes: 0}", "executor.minutes: must be greater than or equal to 1; found 0"),
    ],
)
def test_an_executor_that_cannot_be_is_refused_with_its_place(executor: str, said: str, folder: Path) -> None:
    with pytest.raises(pk.SpecError, match=re.escape(said)):
        load(written(folder, f"base: small.yaml\nexecutor: {executor}\n"))


def test_an_unknown_executor_and_several_workers_inline_are_refused(folder: Path) -> None:
    path = written(folder)
    assert "unknown executor 'rey'; did you mean 'ray'" in running.refused("sweep", path, "--executor", "rey")
    said = running.refused("sweep", path, "--executor", "inline", "--workers", "2")
    assert "is one worker, not 2" in said


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
    assert started(path, "--out", str(whole), "--workers", "1").wait(600) == 0
    draw = random.Random(1)
    both = [
        started(path, "--workers", "2"),
        started(path, "--workers", "1"),
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
    process = started(path, "--workers", "2")
    until = time.monotonic() + 300
    while len(list((folder / "grid").glob("*.h5"))) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    for pid in (*children(process), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert started(path, "--workers", "2").wait(300) == 0
    assert pk.open_sweep(folder / "grid").counts == {"complete": 8}
    assert started(path, "--out", str(folder / "whole"), "--workers", "1").wait(300) == 0
    assert contents(folder / "grid") == contents(folder / "whole")


def test_reading_a_sweep_needs_no_torch(folder: Path) -> None:
    assert running.cli("sweep", written(folder, "base: small.yaml\nseeds: 1\n"), "--workers", "1")[0] == 0
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
        assert running.cli("sweep", path, "--workers", "1")[0] == 0
        assert len(epochs) == 2 * 3 + 6 * 2  # three epochs for each seed, and two of fine-tuning for each run
        monkeypatch.undo()
    else:
        assert started(path, "--workers", "2").wait(300) == 0
    for one in load(path).runs:
        alone = folder / f"{one.key}.alone.h5"
        with one_thread():
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
        assert running.cli("sweep", path, "--workers", "1")[0] == 130
    assert running.cli("sweep", path, "--workers", "1")[0] == 0
    assert contents(folder / "grid") == contents(folder / "whole")
