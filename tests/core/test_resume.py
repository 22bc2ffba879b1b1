"""A run that is stopped at any moment keeps what is finished and ends as if it had never been stopped."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import h5py
import pytest
import running
import torch

import prunekit as pk
from prunekit.observing.listener import Listener
from prunekit.pruning.step import Pruner
from prunekit.runs.state import State
from prunekit.training.loop import Trainer
from prunekit_plugins.probes.line import Line

# Everything whose state could be lost: momenta, BatchNorm's statistics, dropout, drawn examples, best epochs.
AWKWARD = {
    "model": {"name": "python", "factory": "running:convnet"},
    "train": {"epochs": 3, "batch_size": 50, "optimizer": {"name": "adam", "lr": 0.01}},
    "prune": {
        "criterion": {"name": "qm", "curvature": "ggn"},
        "scheduler": {"name": "linear", "sparsity": 0.6, "steps": 3},
        "examples": 30,
        "recalibrate_batchnorm": 40,
    },
    "finetune": {"epochs": 2, "lr_scheduler": {"name": "cosine"}, "optimizer": "sgd"},
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing that runs after it may write."""


class Counter:
    """Counts the work that is really done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.work = {"epochs": 0, "steps": 0, "probes": 0}
        for owner, method, key in (
            (Trainer, "epoch", "epochs"),
            (Pruner, "_attempt", "steps"),
            (Line, "measure", "probes"),
        ):
            self._count(monkeypatch, owner, method, key)

    def _count(self, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, key: str) -> None:
        original = getattr(owner, method)

        def counted(*arguments: Any) -> Any:
            result = original(*arguments)
            self.work[key] += 1
            return result

        monkeypatch.setattr(owner, method, counted)

    def take(self) -> dict[str, int]:
        found, self.work = self.work, dict.fromkeys(self.work, 0)
        return found


def done(path: Path) -> dict[str, Any]:
    """What a file says is finished; wall times tell whether a step is the same one."""
    if not path.exists():
        return {"seconds": [], "dense": [], "finetuned": [], "probes": []}
    with h5py.File(path, "r") as file:
        plain = file["steps/seconds"][()].tolist()
    with pk.open(path) as results:
        assert [step["seconds"] for step in results.summary["steps"]] == plain
        for step in range(1, len(plain) + 1):
            assert (
                sum(int((~m).sum()) for m in results.masks(step).values())
                == (results.summary["steps"][step - 1]["pruned"])
            )
            results.examples(step)
        for phase in ("dense", "pruned", "finetuned"):
            if results.summary[phase] is not None:
                results.weights(phase)
        return {
            "seconds": plain,
            "dense": results.history("dense").get("running_loss", torch.zeros(0).numpy()).tolist(),
            "finetuned": results.history("finetuned").get("running_loss", torch.zeros(0).numpy()).tolist(),
            "probes": sorted(results.summary["probes"]),
        }


def assert_continues(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Whatever was finished is still there, the very same."""
    for key, values in before.items():
        assert after[key][: len(values)] == values


@pytest.mark.parametrize("changes", [{}, AWKWARD], ids=["mlp", "awkward"])
def test_a_run_killed_at_any_write_resumes_bit_equal_and_computes_nothing_twice(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, **changes)
    counter = Counter(monkeypatch)
    pk.run(spec, tmp_path / "whole.h5").close()
    whole, total = running.contents(tmp_path / "whole.h5"), counter.take()
    replace, unlink = os.replace, Path.unlink
    left = 0

    def until_killed(original: Any) -> Any:
        def limited(*arguments: Any, **options: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            original(*arguments, **options)

        return limited

    killed = 0
    for allowed in itertools.count():
        out = tmp_path / f"{allowed}.h5"
        left = allowed
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", until_killed(replace))
            patch.setattr(Path, "unlink", until_killed(unlink))
            try:
                pk.run(spec, out).close()
                break
            except Killed:
                killed += 1
        counter.take()
        before = done(out)
        state_file = Path(f"{out}.state")
        finished = State.load(state_file).finished if state_file.exists() else {}
        if out.exists():  # either may be ahead: the state by an event, the file by steps that only mask
            with pk.open(out) as results:
                finished = {key: max(n, finished.get(key, 0)) for key, n in results.finished.items()}
        complete = results.summary["status"] == "complete" if out.exists() else False
        pk.run(spec, out, resume=True).close()
        assert running.contents(out) == whole
        assert_continues(before, done(out))
        assert not state_file.exists()
        epochs = finished.get("dense epochs", 0) + finished.get("finetuned epochs", 0)
        expected = {
            "epochs": total["epochs"] - epochs,
            "steps": total["steps"] - finished.get("steps", 0),
            "probes": total["probes"] - finished.get("probes", 0),
        }
        assert counter.take() == (dict.fromkeys(total, 0) if complete else expected)
    assert killed > 25


ADAPTIVE = {
    "prune": {
        "criterion": {"name": "obs_rows", "curvature": "ggn_mc", "damping": 0.1},
        "scheduler": {"name": "tightening", "sparsity": 0.5, "steps": 2},
        "examples": 30,
    },
    "train": {"epochs": 1, "batch_size": 50},
    "finetune": None,
    "probes": ["everywhere", {"name": "size", "moments": [{"every": 2}]}, {"name": "line", "points": 3}],
}
MASKING = ADAPTIVE | {"prune": {**ADAPTIVE["prune"], "criterion": "qm"}}
PROBED = MASKING | {
    "prune": {"criterion": "qm", "scheduler": {"name": "linear", "sparsity": 0.5, "steps": 3}, "examples": 30}
}


@pytest.mark.usefixtures("adaptive_plugins")
@pytest.mark.parametrize("changes", [ADAPTIVE, MASKING, PROBED], ids=["updates", "masks", "fixed"])
def test_a_run_killed_among_attempts_and_probes_of_steps_resumes_bit_equal(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, **changes)
    pk.run(spec, tmp_path / "whole.h5").close()
    whole = running.contents(tmp_path / "whole.h5")
    with pk.open(tmp_path / "whole.h5") as results:
        accepted = [attempt["accepted"] for attempt in results.summary["attempts"]]
        assert accepted == ([] if changes is PROBED else [False, True, False, True])
    replace, left, killed = os.replace, 0, 0

    def until_killed(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        replace(*arguments)

    for allowed in itertools.count():
        out, left = tmp_path / f"{allowed}.h5", allowed
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", until_killed)
            try:
                pk.run(spec, out).close()
                break
            except Killed:
                killed += 1
        pk.run(spec, out, resume=True).close()
        assert running.contents(out) == whole
    assert killed > 15


def test_a_run_interrupted_after_any_event_says_so_and_resumes_bit_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path)
    pk.run(spec, tmp_path / "whole.h5").close()
    whole = running.contents(tmp_path / "whole.h5")

    class Interrupting(Listener):
        def __init__(self, allowed: int) -> None:
            self.allowed = allowed

        def _event(self, *_: Any) -> None:
            self.allowed -= 1
            if self.allowed < 0:
                raise KeyboardInterrupt

        phase = epoch = step = probe = _event

    interrupted = 0
    for allowed in itertools.count():
        out = tmp_path / f"{allowed}.h5"
        try:
            pk.run(spec, out, listener=Interrupting(allowed)).close()
            break
        except KeyboardInterrupt:
            interrupted += 1
        with pk.open(out) as results:
            assert results.summary["status"] == "interrupted"
        before = done(out)
        pk.run(spec, out, resume=True).close()
        assert_continues(before, done(out))
        assert running.contents(out) == whole
    assert interrupted == 4 + 3 + 3 + 2 + 1  # phases, epochs, steps, epochs, probe


def test_a_run_that_stops_again_and_again_resumes_bit_equal(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, **AWKWARD)
    pk.run(spec, tmp_path / "whole.h5").close()
    out = tmp_path / "out.h5"

    class OnceEach(Listener):
        def epoch(self, *_: Any) -> None:
            raise KeyboardInterrupt

        step = probe = epoch

    stops = 0
    while True:
        before = done(out)
        try:
            pk.run(spec, out, resume=True, listener=OnceEach()).close()
            break
        except KeyboardInterrupt:
            stops += 1
        assert_continues(before, done(out))
    assert stops == 3 + 3 + 2 + 1
    assert running.contents(out) == running.contents(tmp_path / "whole.h5")


# -- real processes and real signals ---------------------------------------------------------------


@pytest.fixture(scope="module")
def processes() -> Any:
    """Starts processes quickly: from a server that has imported torch but never computed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "prunekit_cli.run", "prunekit.runs.run", "running"])
    return context


def start(processes: Any, *arguments: Any) -> Any:
    process = processes.Process(target=running.command, args=([str(a) for a in arguments],))
    process.start()
    return process


def kill_at_random(processes: Any, folder: Path, kills: int, seed: int) -> None:
    spec = running.write_spec(
        folder, running.YAML.replace("epochs: 3", "epochs: 25").replace("steps: 3", "steps: 12")
    )
    whole = folder / "whole.h5"
    start(processes, "run", spec, "--out", folder / "warm.h5").join()
    started = time.monotonic()
    process = start(processes, "run", spec, "--out", whole)
    process.join()
    duration = time.monotonic() - started
    assert process.exitcode == 0
    expected = running.contents(whole)
    draw = random.Random(seed)
    killed = 0
    for attempt in itertools.count():
        out = folder / f"{attempt}.h5"
        while True:
            before = done(out)
            process = start(processes, "run", spec, "--out", out, "--resume")
            process.join(draw.uniform(0, 1.1 * duration) if killed < kills else None)
            if process.is_alive():
                process.kill()
                process.join()
                killed += 1
            assert_continues(before, done(out))
            state_file = Path(f"{out}.state")
            if state_file.exists():
                State.load(state_file)
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
        assert running.contents(out) == expected
        if killed >= kills:
            return


def test_runs_killed_with_sigkill_at_random_moments_lose_and_repeat_nothing(
    processes: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kill_at_random(processes, tmp_path, kills=5, seed=1)


@pytest.mark.slow
def test_fifty_kills_at_random_moments_lose_and_repeat_nothing(
    processes: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kill_at_random(processes, tmp_path, kills=50, seed=2)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_130_and_a_file_that_can_be_resumed(
    sent: signal.Signals, processes: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = running.write_spec(tmp_path, running.YAML.replace("epochs: 3", "epochs: 100000"))
    out = tmp_path / "out.h5"
    process = start(processes, "run", spec, "--out", out)
    deadline = time.monotonic() + 60
    while not done(out)["dense"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, sent)
    process.join(60)
    assert process.exitcode == 130
    with pk.open(out) as results:
        assert results.summary["status"] == "interrupted"
        assert results.summary["dense"] is None
    assert State.load(tmp_path / "out.h5.state").phase == "train"


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pruner, "outcomes", interrupt)
    code, stdout, stderr = running.cli("run", running.write_spec(tmp_path), "--out", tmp_path / "out.h5")
    assert code == 130
    assert stdout == ""
    assert "interrupted; continue it with --resume" in stderr
    assert "Traceback" not in stderr


def test_a_signal_whose_exception_python_ignores_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored = []

    class Signalling:
        def __del__(self) -> None:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0)  # the handler raises here, and whatever a destructor raises is ignored
            except KeyboardInterrupt:
                ignored.append(self)
                raise

    original = Trainer.epoch

    def epoch(self: Trainer, index: int) -> float:
        Signalling()
        return original(self, index)

    monkeypatch.setattr(Trainer, "epoch", epoch)
    code, _, stderr = running.cli("run", running.write_spec(tmp_path), "--out", tmp_path / "out.h5")
    assert len(ignored) == 1
    assert code == 130
    assert "interrupted" in stderr
    assert "Exception ignored" not in stderr
    with pk.open(tmp_path / "out.h5") as results:
        assert len(results.history("dense")["epoch"]) == 1


# -- what --resume and --overwrite accept ----------------------------------------------------------


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return running.write_spec(tmp_path)


def stopped(spec: Path, out: Path, after: int = 5) -> None:
    """A run interrupted after some epochs and steps."""

    class Stop(Listener):
        left = after

        def epoch(self, *_: Any) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

        step = epoch

    with pytest.raises(KeyboardInterrupt):
        pk.run(spec, out, listener=Stop())


def test_resume_starts_an_absent_output(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    assert running.cli("run", spec, "--out", out, "--resume")[0] == 0
    with pk.open(out) as results:
        assert results.summary["status"] == "complete"


def test_resume_leaves_a_complete_output_alone(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    pk.run(spec, out).close()
    os.utime(out, ns=(10**18, 10**18))
    before = out.read_bytes()
    code, stdout, _ = running.cli("run", spec, "--out", out, "--resume")
    assert code == 0
    assert "complete" in stdout
    assert out.stat().st_mtime_ns == 10**18
    assert out.read_bytes() == before


@pytest.mark.parametrize("complete", [True, False])
def test_resume_refuses_an_output_of_another_spec(complete: bool, spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    if complete:
        pk.run(spec, out).close()
    else:
        stopped(spec, out)
    before = out.read_bytes()
    error = running.refused("run", spec, "--out", out, "--resume", "--set", "prune.scheduler.sparsity=0.71")
    assert "another spec" in error
    assert "prune" in error
    assert out.read_bytes() == before


def test_resume_refuses_data_that_have_changed_and_names_the_file(spec: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out.h5", tmp_path / "data.npz"
    pk.run(spec, tmp_path / "whole.h5").close()
    stopped(spec, out)
    before, original = out.read_bytes(), data.read_bytes()
    running.write_data(data, test=42)
    error = running.refused("run", spec, "--out", out, "--resume")
    assert "data have changed" in error
    assert "(data.npz)" in error
    assert "--overwrite" in error
    assert out.read_bytes() == before
    data.write_bytes(original)  # at another time
    pk.run(spec, out, resume=True).close()
    assert running.contents(out) == running.contents(tmp_path / "whole.h5")


def test_resume_refuses_the_default_loss_where_the_run_had_another(spec: Path, tmp_path: Path) -> None:
    smoothed = spec.with_name("smoothed.yaml")
    smoothed.write_text(f"{running.YAML}loss: {{name: cross_entropy, label_smoothing: 0.1}}\n")
    out = tmp_path / "out.h5"
    stopped(smoothed, out)
    assert "differs in loss" in running.refused("run", spec, "--out", out, "--resume")
    plain = tmp_path / "plain.h5"
    stopped(spec, plain)
    with_its_name = spec.with_name("named.yaml")
    with_its_name.write_text(f"{running.YAML}loss: cross_entropy\n")
    assert running.cli("run", with_its_name, "--out", plain, "--resume")[0] == 0


def test_an_existing_output_is_refused_unless_overwrite_is_given(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    pk.run(spec, out, {"seed": 8}).close()
    before = out.read_bytes()
    error = running.refused("run", spec, "--out", out)
    assert "--overwrite" in error
    assert "--resume" in error
    assert out.read_bytes() == before
    assert running.cli("run", spec, "--out", out, "--overwrite")[0] == 0
    with pk.open(out) as results:
        assert results.summary["spec"]["seed"] == 7


def test_overwrite_keeps_the_old_output_when_the_new_run_cannot_start(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    pk.run(spec, out).close()
    before = out.read_bytes()
    for setting in ("prune.prunable.exclude=['*']", "dataset.path=absent.npz", "model.checkpoint=absent.pt"):
        running.refused("run", spec, "--out", out, "--overwrite", "--set", setting)
        assert out.read_bytes() == before


def test_overwrite_starts_again_after_an_interruption(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    pk.run(spec, tmp_path / "whole.h5").close()
    stopped(spec, out)
    assert running.cli("run", spec, "--out", out, "--overwrite")[0] == 0
    assert running.contents(out) == running.contents(tmp_path / "whole.h5")


def test_resume_and_overwrite_together_are_refused(spec: Path, tmp_path: Path) -> None:
    error = running.refused("run", spec, "--out", tmp_path / "out.h5", "--resume", "--overwrite")
    assert "contradict" in error


def test_resume_without_its_state_is_refused(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    stopped(spec, out)
    (tmp_path / "out.h5.state").unlink()
    before = out.read_bytes()
    error = running.refused("run", spec, "--out", out, "--resume")
    assert "out.h5.state" in error
    assert "--overwrite" in error
    assert out.read_bytes() == before


@pytest.mark.parametrize("damage", ["empty", "truncated", "foreign", "tensor", "pickle"])
def test_resume_from_a_damaged_state_is_refused(damage: str, spec: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "out.h5", tmp_path / "out.h5.state"
    stopped(spec, out)
    match damage:
        case "empty":
            state.write_bytes(b"")
        case "truncated":
            state.write_bytes(state.read_bytes()[:-200])
        case "foreign":
            torch.save({"weight": torch.zeros(2)}, state)
        case "tensor":
            torch.save(torch.zeros(2), state)
        case "pickle":
            torch.save({"format": Path}, state)
    before = out.read_bytes()
    error = running.refused("run", spec, "--out", out, "--resume")
    assert "out.h5.state" in error
    assert "--overwrite" in error
    assert out.read_bytes() == before


def test_resume_refuses_a_state_whose_results_file_is_gone_or_another(spec: Path, tmp_path: Path) -> None:
    # The masks of the earlier steps lie in the results file alone.
    out, other = tmp_path / "out.h5", tmp_path / "other.h5"
    stopped(spec, out, after=5)
    stopped(spec, other, after=1)
    early, late = other.read_bytes(), out.read_bytes()
    for found in (None, early):
        out.unlink()
        if found is not None:
            out.write_bytes(found)
        error = running.refused("run", spec, "--out", out, "--resume")
        assert "cannot be resumed" in error
        if found is None:
            out.write_bytes(late)
    other.write_bytes(late)
    assert "cannot be resumed" in running.refused("run", spec, "--out", other, "--resume")


def test_a_state_left_without_its_output_is_not_overwritten_silently(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    stopped(spec, out)
    out.unlink()
    assert "out.h5.state" in running.refused("run", spec, "--out", out)
    assert running.cli("run", spec, "--out", out, "--overwrite")[0] == 0
    assert not (tmp_path / "out.h5.state").exists()


def test_resume_of_a_damaged_results_file_is_refused(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    stopped(spec, out)
    out.write_bytes(out.read_bytes()[:3000])
    assert "out.h5" in running.refused("run", spec, "--out", out, "--resume")


def test_a_run_that_failed_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path)
    pk.run(spec, tmp_path / "whole.h5").close()
    out = tmp_path / "out.h5"

    class Failing(Listener):
        def step(self, *_: Any) -> None:
            raise RuntimeError("something else broke")

    with pytest.raises(RuntimeError, match="something else"):
        pk.run(spec, out, listener=Failing())
    with pk.open(out) as results:
        assert results.summary["status"] == "failed"
        assert results.summary["environment"]["error"] == "something else broke"
    pk.run(spec, out, resume=True).close()
    assert running.contents(out) == running.contents(tmp_path / "whole.h5")
