"""One writer: an output has one owner, who alone changes it, and nothing that is not prunekit's is replaced."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import running

import prunekit as pk
from prunekit.errors import ResultsError, RunError
from prunekit.observing.listener import Listener
from prunekit.results import ResultsWriter, claim, ours, replacing, storing
from prunekit.results.claim import claimed, lock_path
from prunekit.runs.state import state_path

METRICS = {"train_loss": 0.5}


def begin(out: Path) -> ResultsWriter:
    """A file without steps."""
    writer = ResultsWriter(out)
    writer.create("9.9", {"name": "made up"}, {}, "text", {}, {"w": (8,)}, tuple(METRICS))
    return writer


def add_step(writer: ResultsWriter, step: int) -> None:
    row = {"step": step, "pruned": step, "remaining": 8 - step, "layers": {"w": step / 8}}
    writer.add_step(row, {"w": np.arange(8) >= step}, np.arange(3))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.h5"


# -- who owns an output ----------------------------------------------------------------------------


def test_an_output_has_one_owner_and_the_next_is_told_who_and_since_when(out: Path) -> None:
    with claimed(out):
        said = json.loads(lock_path(out).read_bytes())
        assert (said["host"], said["process"]) == (socket.gethostname(), os.getpid())
        with pytest.raises(ResultsError) as refused, claimed(out):
            pass
        for what in (f"process {os.getpid()}", said["since"], "out.h5.lock"):
            assert what in str(refused.value)
        with claimed(out.with_name("other.h5")):
            pass
    assert not lock_path(out).exists()
    with claimed(out):
        pass


def test_death_gives_an_output_free_and_its_lock_is_no_obstacle(out: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from prunekit.results.claim import claimed\n"
        "with claimed(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ResultsError, match=f"process {process.pid} "), claimed(out):
            pass
        process.kill()
    assert lock_path(out).exists()
    with claimed(out):
        assert json.loads(lock_path(out).read_bytes())["process"] == os.getpid()
    assert not lock_path(out).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_hold_what_its_parent_gives_up(out: Path) -> None:
    with claimed(out):
        child = os.fork()
        if not child:
            time.sleep(600)
            os._exit(0)
    try:
        with claimed(out):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("what", ["file", "folder", "link", "fifo"])
def test_a_lock_that_is_not_prunekits_is_left_alone(what: str, out: Path, tmp_path: Path) -> None:
    lock, elsewhere = lock_path(out), tmp_path / "elsewhere"
    {
        "file": lambda: lock.write_text("# of a package manager"),
        "folder": lock.mkdir,
        "link": lambda: lock.symlink_to(elsewhere),
        "fifo": lambda: os.mkfifo(lock),
    }[what]()
    before = os.lstat(lock).st_ino, os.lstat(lock).st_mtime_ns
    with pytest.raises(ResultsError, match=r"out\.h5\.lock: is not a"), claimed(out):
        pass
    assert (os.lstat(lock).st_ino, os.lstat(lock).st_mtime_ns) == before
    assert not elsewhere.exists()


def test_a_lock_that_says_half_of_what_it_should_is_taken(out: Path) -> None:
    lock_path(out).write_bytes(b'{"prunekit-lock": 1, "tok')
    with claimed(out):
        pass


# -- where the kernel's locks do not reach ---------------------------------------------------------


@pytest.fixture(params=["no locks", "locks of another machine"])
def elsewhere(request: pytest.FixtureRequest, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output whose owner the kernel does not know of."""
    monkeypatch.setattr(claim, "_SETTLE", 0.0)
    if request.param == "no locks":
        monkeypatch.setattr(claim, "_locked", lambda descriptor: False)
        record = claim._record()
    else:
        record = claim._record().replace(socket.gethostname().encode(), b"another-machine")
    lock_path(out).write_bytes(record)
    return out


def test_an_owner_who_was_alive_a_moment_ago_is_respected(elsewhere: Path) -> None:
    with pytest.raises(ResultsError, match="alive 0 s ago"), claimed(elsewhere):
        pass
    assert [path.name for path in elsewhere.parent.iterdir()] == ["out.h5.lock"]


def test_an_owner_who_shows_no_life_is_succeeded(elsewhere: Path) -> None:
    then = time.time() - 2 * claim.STALE
    os.utime(lock_path(elsewhere), (then, then))
    with claimed(elsewhere):
        assert json.loads(lock_path(elsewhere).read_bytes())["process"] == os.getpid()


def test_an_owner_shows_life(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "_SYNC", 0.01)
    monkeypatch.setattr(claim, "BEAT", 0.02)
    with claimed(out):
        os.utime(lock_path(out), (0, 0))
        deadline = time.monotonic() + 60
        while os.stat(lock_path(out)).st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert os.stat(lock_path(out)).st_mtime > 0


# -- what an owner who is none any more may do -----------------------------------------------------


@pytest.mark.parametrize("how", ["has taken it over", "is gone"])
def test_who_has_lost_an_output_writes_no_more(how: str, out: Path) -> None:
    with claimed(out):
        writer = begin(out)
        add_step(writer, 1)
        before = out.read_bytes()
        if how == "is gone":
            lock_path(out).unlink()
        else:
            lock_path(out).write_bytes(claim._record().replace(b'"process": ', b'"process": 1'))
        with pytest.raises(RunError, match=how):
            add_step(writer, 2)
    assert out.read_bytes() == before
    assert lock_path(out).exists() == (how == "has taken it over")  # it is another's
    assert not list(out.parent.glob("*.tmp"))


def test_a_run_that_has_lost_its_output_fails_and_leaves_the_file_to_the_other(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    out = tmp_path / "out.h5"
    found: list[bytes] = []

    class Losing(Listener):
        def step(self, record: pk.StepRecord) -> None:
            if record.step == 2:
                lock_path(out).unlink()
                found.extend((out.read_bytes(), state_path(out).read_bytes()))

    with pytest.raises(RunError, match="is gone"):
        pk.run(running.mapping(tmp_path), out, listener=Losing())
    assert [out.read_bytes(), state_path(out).read_bytes()] == found


@pytest.mark.parametrize("cached", [True, False], ids=["in one go", "opened anew"])
def test_a_step_is_added_to_the_one_before_alone(cached: bool, out: Path) -> None:
    writer = begin(out)
    for step in (1, 2):
        add_step(writer, step)
    other = writer if cached else ResultsWriter(out)
    before = running.contents(out)
    for step in (1, 2, 4):
        with pytest.raises(RunError, match=f"step {step} cannot be added.* ends at step 2"):
            add_step(other, step)
    assert running.contents(out) == before
    add_step(other, 3)


def test_what_another_process_has_added_meanwhile_is_seen(out: Path) -> None:
    writer, other = begin(out), ResultsWriter(out)
    for step in (1, 2):
        add_step(writer, step)
    add_step(other, 3)
    with pytest.raises(RunError, match=r"step 3 cannot be added.* ends at step 3"):
        add_step(writer, 3)
    row = {"epoch": 1, "running_loss": 1.0}
    writer.add_epoch("dense", row)
    with pytest.raises(RunError, match="dense epoch 1 cannot be added"):
        other.add_epoch("dense", row)
    writer.add_phase("dense", METRICS, {"w": np.zeros(8, np.float32)})
    with pytest.raises(RunError, match="holds the dense network already"):
        other.add_phase("dense", METRICS, {"w": np.zeros(8, np.float32)})


# -- temporary files -------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, OSError, RuntimeError])
def test_nothing_is_left_of_a_change_that_failed(
    error: type[BaseException], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = begin(out)
    before = out.read_bytes()

    def fail(*_: object) -> None:
        assert len(list(out.parent.iterdir())) == 2
        raise error

    monkeypatch.setattr(storing, "append", fail)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else RunError):
        add_step(writer, 1)
    assert [path.name for path in out.parent.iterdir()] == ["out.h5"]
    assert out.read_bytes() == before


def test_a_temporary_file_has_another_name_each_time_and_is_made_where_nothing_is(out: Path) -> None:
    names = set()
    for number in range(3):
        with replacing.replacing(out) as temporary:
            assert temporary.parent == out.parent
            assert temporary.stat().st_size == 0
            temporary.write_text(str(number))
            names.add(temporary.name)
        assert out.read_text() == str(number)
    assert len(names) == 3


def test_a_link_that_waits_under_a_temporary_name_is_not_followed(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    victim = out.with_name("victim")
    victim.write_text("precious")
    out.with_name(f"out.h5.{'0' * 16}.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError), replacing.replacing(out):
        pass
    assert victim.read_text() == "precious"


def test_who_could_not_read_a_file_cannot_read_what_replaces_it(out: Path) -> None:
    writer = begin(out)
    out.chmod(0o600)
    add_step(writer, 1)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_what_killed_processes_were_writing_is_removed_by_the_next_owner(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    out, token = tmp_path / "out.h5", "0123456789abcdef"
    swept = [out.with_name(f"out.h5.{token}.tmp"), out.with_name(f"out.h5.state.{token}.tmp")]
    kept = [out.with_name(name) for name in ("out.h5.mine.tmp", f"other.h5.{token}.tmp", "out.h5.tmp")]
    for path in (*swept, *kept):
        path.write_text("something")
    pk.run(running.mapping(tmp_path), out).close()
    assert not any(path.exists() for path in swept)
    assert all(path.exists() for path in kept)


# -- the disk --------------------------------------------------------------------------------------


def test_the_disk_is_waited_for_once_a_second_and_at_the_end(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, now, fsync = 0, 100.0, os.fsync

    def counted(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    counts = []
    with claimed(out) as owner:
        for later in (0, 0.5, 0.9, 1.1, 1.2):
            before, now = synced, 100 + later
            with replacing.replacing(out, owner.put) as temporary:
                temporary.write_text(str(later))
            counts.append(synced - before)
        before = synced
    assert counts == [2, 0, 0, 2, 0]  # the file, and the name in its folder
    assert synced - before == 1


def test_all_files_of_a_boundary_are_waited_for_together(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    now = 100.0
    monkeypatch.setattr(replacing, "sync", lambda path: waited.append(path.name))
    monkeypatch.setattr(claim, "sync", lambda path: waited.append(f"late {path.name}"))
    monkeypatch.setattr(time, "monotonic", lambda: now)
    files = [out.with_name("a.state"), out.with_name("a.results")]
    seen = []
    with claimed(out) as owner:
        for later in (0, 0.5, 1.1):
            for file in files:
                now = 100 + later
                with replacing.replacing(file, owner.put) as temporary:
                    temporary.write_text(str(later))
            # A file is waited for under its temporary name, a folder under its own.
            seen.append([re.sub(r"\.[0-9a-f]{16}\.tmp", "", name) for name in waited if "." in name])
            waited.clear()
    assert seen == [["a.state", "a.results"], [], ["late a.results", "a.state", "a.results"]]


# -- what --overwrite replaces ---------------------------------------------------------------------


def test_a_results_file_and_a_state_are_told_from_other_files(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    out = tmp_path / "out.h5"

    class Stop(Listener):
        def step(self, record: pk.StepRecord) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pk.run(running.mapping(tmp_path), out, listener=Stop())
    assert (ours.is_results(out), ours.is_state(state_path(out))) == (True, True)
    assert (ours.is_state(out), ours.is_results(state_path(out))) == (False, False)
    pk.run(running.mapping(tmp_path), out, resume=True).close()
    assert ours.is_results(out)  # made anew, compressed
    assert ours.is_results(Path(__file__).parents[1] / "data" / "results-0.1.0.h5")
    (tmp_path / "text").write_text("about prunekit-results and prunekit-state")
    assert not ours.is_results(tmp_path / "text")
    assert not ours.is_state(tmp_path / "text")
    out.write_bytes(out.read_bytes()[:5000])
    assert ours.is_results(out)  # a damaged one is still ours
