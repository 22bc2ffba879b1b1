"""How a run ends: exit codes that tell the truth, whatever signals, plugins, readers and the system do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import running

import prunekit as pk
from prunekit.observing.listener import Listener
from prunekit.pruning.step import Pruner
from prunekit_cli import failures, signals, streams


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return running.write_spec(tmp_path)


def started(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "prunekit_cli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: [signal.signal(s, signal.SIG_DFL) for s in (signal.SIGINT, signal.SIGHUP)],
        **options,
    )


# -- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["int", "term", "hup"])
def test_a_signal_while_things_are_imported_ends_with_130_and_one_line(
    sent: signal.Signals, spec: Path
) -> None:
    code = (
        "import os, sys\n"
        "class Sending:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer': os.kill(os.getpid(), int(sys.argv[1]))\n"
        "sys.meta_path.insert(0, Sending())\n"
        "from prunekit_cli.__main__ import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(int(sent))],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: [signal.signal(s, signal.SIG_DFL) for s in (signal.SIGINT, signal.SIGHUP)],
    )
    assert done.returncode == 130
    assert done.stderr == "interrupted\n"


def test_a_second_signal_ends_a_run_at_once_and_the_last_boundary_is_kept(spec: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, time\n"
        "from prunekit.results import ResultsWriter\n"
        "from prunekit.results.replacing import replacing\n"
        "def stubborn(self, status, environment):\n"
        "    with replacing(self.path):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        while True: time.sleep(0.01)\n"
        "add = ResultsWriter.add_step\n"
        "def add_step(self, row, *more):\n"
        "    add(self, row, *more)\n"
        "    if row['step'] == 2: os.kill(os.getpid(), signal.SIGINT)\n"
        "ResultsWriter.finish, ResultsWriter.add_step = stubborn, add_step\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "from prunekit_cli.__main__ import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(spec), "--out", "out.h5"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 130
    assert done.stderr.count("interrupted") == 1
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.tmp"))
    with pk.open("out.h5") as results:
        assert len(results.summary["steps"]) == 2
    pk.run(spec, tmp_path / "whole.h5").close()
    assert running.cli("run", spec, "--out", "out.h5", "--resume")[0] == 0
    assert running.contents(tmp_path / "out.h5") == running.contents(tmp_path / "whole.h5")


def hides_an_interruption(*_: object, **__: object) -> None:
    """What a signal becomes inside compiled code."""
    raise SystemError("<cyfunction FastRLock.__exit__> returned a result with an exception set") from (
        KeyboardInterrupt()
    )


def test_an_interruption_that_compiled_code_made_another_error_of_is_one(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("prunekit.pruning.step.asked", hides_an_interruption)
        code, said, _ = running.cli("run", spec, "--out", "out.h5")
    assert (code, said) == (130, "")
    with h5py.File("out.h5") as file:
        assert file.attrs["status"] == b"interrupted"
    monkeypatch.setattr("prunekit.results.reader._summary", hides_an_interruption)
    assert running.cli("inspect", "out.h5")[0] == 130
    with pytest.raises(KeyboardInterrupt):
        pk.open("out.h5")


@pytest.mark.parametrize("stubborn", [False, True], ids=["loops", "loops_and_catches_everything"])
def test_a_plugin_in_an_endless_loop_is_interrupted_and_what_was_finished_is_kept(
    stubborn: bool, spec: Path, tmp_path: Path
) -> None:
    """A plugin that catches every exception takes a second signal."""
    code = (
        "import itertools, time\n"
        "from prunekit_plugins.criteria.magnitude import Magnitude\n"
        "calls, saliency = itertools.count(), Magnitude.saliency\n"
        "def endless(self, weights, statistics):\n"
        "    if next(calls) < 2: return saliency(self, weights, statistics)\n"
        "    open('looping', 'w').close()\n"
        "    while True:\n"
        "        try:\n"
        "            while True: time.sleep(0.01)\n"
        f"        except {'BaseException' if stubborn else 'ZeroDivisionError'}: open('caught', 'w').close()\n"
        "Magnitude.saliency = endless\n"
        "from prunekit_cli.__main__ import main; main()\n"
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            "run",
            str(spec),
            "--out",
            "out.h5",
            "--set",
            "prune.criterion=magnitude",
        ],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for place in ("looping", "caught") if stubborn else ("looping",):
        while not (tmp_path / place).exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.count("interrupted") == 1
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("*.tmp"))
    with pk.open("out.h5") as results:
        assert len(results.summary["steps"]) == 2
        assert results.summary["status"] == ("running" if stubborn else "interrupted")


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["inspect", "absent.h5"], 2)])
def test_a_signal_while_python_ends_changes_no_exit_code(arguments: list[str], code: int, spec: Path) -> None:
    program = (
        "import atexit, os, signal\n"
        "from prunekit_cli.__main__ import main\n"
        "atexit.register(lambda: [os.kill(os.getpid(), signal.SIGTERM), print('went on')])\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == code
    assert "went on" not in done.stdout
    assert "Traceback" not in done.stderr


def test_a_signal_that_is_ignored_stays_ignored(spec: Path) -> None:
    process = started("run", spec, "--out", "out.h5", stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    process.wait(300)
    assert process.returncode == 0
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.interrupting():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_a_signal_does_is_as_before_once_a_command_is_over(spec: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    running.cli("validate", spec)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


# -- plugins that would end the process ------------------------------------------------------------


def raising(error: BaseException) -> Callable[..., None]:
    def raise_it(*_: object) -> None:
        raise error

    return raise_it


def exits() -> list[BaseException]:
    import typer

    return [
        SystemExit(0),
        SystemExit(None),
        typer.Exit(0),
        typer.Abort(),
        BrokenPipeError(32, "a socket of the plugin's"),
    ]


@pytest.mark.parametrize(
    "number", range(5), ids=["exit 0", "exit", "typer.Exit", "typer.Abort", "broken pipe"]
)
def test_what_a_plugin_raises_to_end_the_process_is_a_failed_run(
    number: int, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pruner, "outcomes", raising(exits()[number]))
    error = running.refused("run", spec, "--out", "out.h5", code=1)
    assert type(exits()[number]).__name__ in error
    with pk.open("out.h5") as results:
        assert results.summary["status"] == "failed"
        assert results.summary["steps"] == []


def test_the_library_does_not_end_its_callers_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.write_data(tmp_path / "data.npz")
    monkeypatch.setattr(Pruner, "outcomes", raising(SystemExit(0)))
    with pytest.raises(pk.RunError, match=r"SystemExit\(0\)"):
        pk.run(running.mapping(tmp_path), tmp_path / "out.h5")


def test_a_bug_says_that_it_is_one_and_keeps_its_traceback(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pruner, "outcomes", raising(KeyError("lost")))
    code, _, error = running.cli("run", spec, "--out", "out.h5")
    assert code == 1
    assert "Traceback" in error
    assert "bug" in error.splitlines()[-1]


# -- readers that go away --------------------------------------------------------------------------


def test_a_run_goes_on_when_nobody_reads_its_progress_any_more(spec: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    process = started("run", spec, "--out", "out.h5", stdout=write, stderr=write)
    os.close(write)
    os.read(read, 1)
    os.close(read)
    assert process.wait(300) == 0
    with pk.open("out.h5") as results:
        assert results.summary["status"] == "complete"
        assert len(results.summary["steps"]) == 3


def test_a_stream_without_a_reader_is_silent_and_one_with_a_reader_is_not() -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w", buffering=1) as stream:
        lasting = streams.Lasting(stream)
        assert lasting.write("heard\n") == 6
        assert os.read(read, 10) == b"heard\n"
        os.close(read)
        assert lasting.write("unheard\n") == 8
        lasting.flush()
        assert (lasting.fileno(), lasting.isatty()) == (write, False)
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)  # for what is left in its buffer


# -- what the system refuses -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(24, "Too many open files", "a"), 1),
        (OSError(28, "No space left on device", "a"), 1),
        (OSError(36, "File name too long", "a"), 2),
        (PermissionError(13, "Permission denied", "a"), 2),
        (MemoryError(), 1),
        (ImportError("libc10.so: failed to map segment from shared object"), 1),
        (RuntimeError("can't start new thread"), 1),
    ],
    ids=["handles", "space", "name", "permission", "memory", "mapping", "thread"],
)
def test_what_the_system_refuses_is_one_line_and_no_bug(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failures.report(error, silent=False) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "bug" not in said


@pytest.mark.parametrize("out", ["x" * 300 + ".h5", "x" * 245 + ".h5", "x" * 300 + "/out.h5"])
def test_a_name_that_is_too_long_is_refused_before_any_work(out: str, spec: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    running.refused("run", spec, "--out", out)
    assert set(tmp_path.iterdir()) == before


def test_the_longest_name_that_is_allowed_works(spec: Path, tmp_path: Path) -> None:
    name = "x" * 225 + ".h5"
    assert running.cli("run", spec, "--out", name)[0] == 0
    assert "of at most 228" in running.refused("run", spec, "--out", f"x{name}")


@pytest.mark.parametrize(
    "error", [MemoryError(), MemoryError("Unable to allocate 8. TiB")], ids=["bare", "numpy's"]
)
def test_a_memory_that_runs_out_is_one_line_and_a_failed_run(
    error: MemoryError, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pruner, "outcomes", raising(error))
    said = running.refused("run", spec, "--out", "out.h5", code=1)
    assert "out of memory" in said
    with pk.open("out.h5") as results:
        assert results.summary["status"] == "failed"
    assert not list(tmp_path.glob("*.tmp"))


# -- only what is ours is replaced -----------------------------------------------------------------


def another_h5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["somebody's"] = [1, 2, 3]


FOREIGN: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("precious"),
    "hdf5": another_h5,
    "fifo": os.mkfifo,
    "folder": os.mkdir,
    "link to a device": lambda path: path.symlink_to("/dev/null"),
    "link to itself": lambda path: path.symlink_to(path.name),
}


def identity(path: str) -> tuple[int, ...]:
    """What changes when a file is made anew, and not when somebody looks at it."""
    found = os.lstat(path)
    return found.st_ino, found.st_mode, found.st_mtime_ns, found.st_size


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("name", ["out.h5", "out.h5.state"])
@pytest.mark.parametrize("flag", ["", "--overwrite", "--resume"])
def test_what_prunekit_has_not_written_is_not_replaced(
    flag: str, name: str, what: str, spec: Path, tmp_path: Path
) -> None:
    FOREIGN[what](tmp_path / name)
    before = identity(name)
    content = (tmp_path / name).read_bytes() if what in ("text", "hdf5") else b""
    there = set(tmp_path.iterdir())
    error = running.refused("run", spec, "--out", "out.h5", *([flag] if flag else []))
    assert name in error or "/dev/null" in error
    assert identity(name) == before
    assert content == ((tmp_path / name).read_bytes() if content else b"")
    assert set(tmp_path.iterdir()) == there


def test_what_is_empty_is_replaced_and_so_is_a_damaged_state_beside_results(
    spec: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.h5").touch()
    (tmp_path / "out.h5.state").touch()
    assert running.cli("run", spec, "--out", "out.h5", "--overwrite")[0] == 0
    (tmp_path / "out.h5.state").write_bytes(b"no state at all")
    assert running.cli("run", spec, "--out", "out.h5", "--overwrite")[0] == 0
    assert not (tmp_path / "out.h5.state").exists()


def test_an_export_replaces_an_export_alone(spec: Path, tmp_path: Path) -> None:
    pk.run(spec, tmp_path / "out.h5").close()
    (tmp_path / "w").write_text("precious")
    error = running.refused("export", "out.h5", "--weights", "w", "--overwrite")
    assert "not a file that prunekit exported" in error
    assert (tmp_path / "w").read_text() == "precious"
    for _ in range(2):
        assert running.cli("export", "out.h5", "--weights", "v", "--masks", "m", "--overwrite")[0] == 0
    assert not list(tmp_path.glob("*.tmp"))


# -- a reader beside a writer ----------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["TRUE", "FALSE", "BEST_EFFORT"])
def test_readers_with_any_of_hdf5s_locks_are_no_trouble_to_a_run(
    setting: str, spec: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, time, h5py; from pathlib import Path\n"
        "while not Path('out.h5').exists(): time.sleep(0.001)\n"
        "count, last = 0, ''\n"
        "while last != 'complete':\n"
        "    with h5py.File('out.h5') as file:\n"
        "        last, count = file.attrs['status'].rstrip(b'\\0').decode(), count + 1\n"
        "print(count)"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "HDF5_USE_FILE_LOCKING": setting},
    )
    try:
        assert running.cli("run", spec, "--out", "out.h5")[0] == 0
        said, _ = reader.communicate(timeout=300)
    finally:
        reader.kill()
    assert reader.returncode == 0
    assert int(said) > 0


def test_results_that_are_open_in_this_process_are_no_trouble_to_the_next_run(
    spec: Path, tmp_path: Path
) -> None:
    first = pk.run(spec, tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as plain, h5py.File(tmp_path / "out.h5", locking=None):
        second = pk.run(spec, tmp_path / "out.h5", overwrite=True)
        assert plain.attrs["status"].startswith(b"complete")

        class Reading(Listener):
            def step(self, record: pk.StepRecord) -> None:
                with pk.open(tmp_path / "out.h5") as live, h5py.File(tmp_path / "out.h5", locking=None):
                    seen.append((live, len(live.summary["steps"]), live.masks(record.step)))

        seen: list[Any] = []
        with pk.run(spec, tmp_path / "out.h5", overwrite=True, listener=Reading()) as third:
            assert [count for _, count, _ in seen] == [1, 2, 3]
            assert third.summary["status"] == "complete"
    for results in (first, second):
        assert results.masks(3).keys() == results.masks(1).keys()
        results.close()
