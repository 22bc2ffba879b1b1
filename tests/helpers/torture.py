"""Runs that are killed, collide and are refused by the system, at random moments; what comes of them is counted.

``python tests/helpers/torture.py KIND COUNT [SEED]`` with KIND one of ``kills``, ``collisions``, ``limits``,
``disks``. Each trial
ends in results that are bit for bit those of a run that nobody disturbed, or in a refusal; anything else is an
assertion that fails.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import running
import torch

import prunekit as pk
from prunekit.runs.state import State, state_path

_LONG = running.YAML.replace("epochs: 3", "epochs: 12").replace("steps: 3", "steps: 8")
SPECS = {
    "masks": _LONG,
    "updates": _LONG.replace("{name: qm, lambda: 1e-3}", "{name: obs_rows, curvature: ggn_mc, damping: 0.1}"),
    "probes": _LONG.replace(
        "probes: [", "probes: [{name: line, label: early, points: 3, moments: [pruned]}, "
    ),
}
NOBODY = 65534
_SENT = {
    "KILL": (signal.SIGKILL,),
    "TERM": (signal.SIGTERM,),
    "INT": (signal.SIGINT,),
    "HUP": (signal.SIGHUP,),
    "TERM TERM": (signal.SIGTERM, signal.SIGTERM),
    "INT TERM": (signal.SIGINT, signal.SIGTERM),
    "HUP INT": (signal.SIGHUP, signal.SIGINT),
}


@dataclass
class Run:
    """The command line in a process of its own, from a server that has imported torch but never computed."""

    arguments: list[str]
    folder: Path
    limits: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.errors = self.folder / f"{random.getrandbits(64):x}.stderr"
        self.process: BaseProcess = server().Process(
            target=_command, args=(self.arguments, str(self.errors), dict(self.limits))
        )
        self.process.start()
        self.reached = False
        """Whether it came as far as the command, once it has ended."""
        self.started = time.monotonic()

    def begun(self, out: Path, patience: float) -> float:
        """Wait until it writes, or has ended; seconds since its start."""
        there = _changed(state_path(out))
        while self.process.is_alive() and time.monotonic() - self.started < patience:
            if _changed(state_path(out)) != there:
                break
            time.sleep(0.001)
        return time.monotonic() - self.started

    def send(self, signals: tuple[signal.Signals, ...], gap: float) -> None:
        """Send one signal after another, while there is somebody to hear them."""
        for number, sent in enumerate(signals):
            if number:
                time.sleep(gap)
            if self.process.is_alive() and self.process.pid is not None:
                os.kill(self.process.pid, sent)

    def end(self) -> tuple[int, str]:
        """Its exit code and what it said."""
        self.process.join(300)
        assert not self.process.is_alive(), f"{self.arguments}: hangs"
        self.reached = self.errors.exists()
        said = self.errors.read_text(errors="replace") if self.reached else ""
        with contextlib.suppress(FileNotFoundError):
            self.errors.unlink()
        code = self.process.exitcode
        assert code is not None
        assert "Traceback" not in said, said
        assert "bug in prunekit" not in said, said
        return code, said


class Server:
    """What starts processes: it has imported all that a run imports, and never computed."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["torch", "prunekit_cli.run", "running", *_imported()])
        self.Process: Callable[..., BaseProcess] = self.context.Process


def _imported() -> list[str]:
    """Modules that a run imports, in its order."""
    code = (
        "import running, sys, tempfile; from pathlib import Path\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    spec = running.write_spec(Path(folder))\n"
        "    running.cli('run', spec, '--out', Path(folder) / 'out.h5')\n"
        "print(*(name for name in sys.modules if name.startswith(('torch', 'sympy', 'prunekit'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return done.stdout.split()


_server: list[Server] = []


def server() -> Server:
    """One for all, started when it is needed."""
    if not _server:
        _server.append(Server())
    return _server[0]


def _command(arguments: list[str], errors: str, limits: dict[str, int]) -> None:
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for name, value in limits.items():
        _limit(name, value)
    running.command(arguments)


def _limit(name: str, value: int) -> None:
    if name == "user":
        os.setgid(value)
        os.setuid(value)
        return
    if name == "memory":  # beyond what is mapped already
        value += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if name == "handles":
        value += len(os.listdir("/proc/self/fd"))
    which = {
        "memory": resource.RLIMIT_AS,
        "handles": resource.RLIMIT_NOFILE,
        "file size": resource.RLIMIT_FSIZE,
    }
    resource.setrlimit(which[name], (value, value))


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@dataclass
class Whole:
    """A spec, what comes of it undisturbed, and how long that takes before and after the first file is written."""

    spec: Path
    contents: Mapping[str, object]
    before: float
    after: float


def wholes(folder: Path, names: tuple[str, ...] = tuple(SPECS)) -> list[Whole]:
    """Run specs undisturbed, each in a folder of its own."""
    found = []
    for name in names:
        (folder / name).mkdir()
        spec = running.write_spec(folder / name, SPECS[name])
        for out in ("warm.h5", "whole.h5"):
            run = Run(["run", str(spec), "--out", str(folder / name / out)], folder)
            before = run.begun(folder / name / out, 300)
            assert run.end()[0] == 0
            after = time.monotonic() - run.started - before
        found.append(Whole(spec, running.contents(folder / name / "whole.h5"), before, after))
    return found


def finished(out: Path) -> dict[str, list[float]]:
    """What a file says is done, which nobody may take away; wall times tell that a step is the same one."""
    try:
        opened = pk.open(out)
    except pk.ResultsError as error:
        if "no such file" not in str(error):
            raise
        return {}
    with opened as results:
        steps = results.summary["steps"]
        for step in range(1, len(steps) + 1):
            assert sum(int((~m).sum()) for m in results.masks(step).values()) == steps[step - 1]["pruned"]
        phases = {
            phase: list(results.history(phase).get("running_loss", ())) for phase in ("dense", "finetuned")
        }
        return {"seconds": [step["seconds"] for step in steps], **phases}


def moment(out: Path) -> str:
    """Where a run has been stopped."""
    if state_path(out).exists():
        return State.load(state_path(out)).phase
    return "closing" if out.exists() else "start"


def kills(folder: Path, count: int, seed: int) -> Counter[str]:
    """Stop runs by signals, resume them until they are complete, and compare; ``count`` signals in all."""
    draw, counts, number = random.Random(seed), Counter[str](), 0
    specs = wholes(folder)
    while counts["kills"] < count:
        whole, number = draw.choice(specs), number + 1
        place = folder / str(number)
        place.mkdir()
        out, code = place / "out.h5", -1
        while code != 0:
            before, left = finished(out), set(place.glob("*.tmp"))
            run = Run(["run", str(whole.spec), "--out", str(out), "--resume"], folder)
            how = draw.choice(list(_SENT))
            if counts["kills"] < count:
                if draw.random() < 0.8:
                    run.begun(out, 300)
                    run.process.join(draw.uniform(0, 1.1 * whole.after))
                else:
                    run.process.join(draw.uniform(0, whole.before))
            alive = counts["kills"] < count and run.process.is_alive()
            if alive:
                run.send(_SENT[how], draw.choice([0, 0.002, 0.05]))
            code, said = run.end()
            after = finished(out)
            for key, values in before.items():
                assert after[key][: len(values)] == values, (how, key)
            if alive:
                early = how != "KILL" and (
                    -code in _SENT[how] or not run.reached
                )  # before the command has begun
                assert early or code in (0, signals_code(how)), (how, code, said)
                counts["kills"] += 1
                counts[f"by {how}"] += 1
                counts["in " + ("start" if early else moment(out))] += 1
                if code == 130:
                    assert said.count("interrupted") == 1, said
                    assert set(place.glob("*.tmp")) <= left, (how, list(place.iterdir()))
            else:
                assert code == 0, said
        assert running.contents(out) == whole.contents
        assert [path.name for path in place.iterdir()] == ["out.h5"]
        counts["runs compared bit for bit"] += 1
        out.unlink()
        tell(counts["kills"], count)
    return counts


def signals_code(how: str) -> int:
    """The exit code of a run that such signals end."""
    return -signal.SIGKILL if how == "KILL" else 130


def collisions(folder: Path, count: int, seed: int) -> Counter[str]:
    """Let two processes at one output, in every combination, with a reader beside them in every other trial."""
    draw, counts = random.Random(seed), Counter[str]()
    first, second = wholes(folder, ("masks", "updates"))
    flags: dict[str, list[str]] = {"run": [], "resume": ["--resume"], "overwrite": ["--overwrite"]}
    trials = [(a, b, there) for a in flags for b in flags for there in ("absent", "unfinished", "complete")]
    for number in range(count):
        a, b, there = trials[number % len(trials)]
        place = folder / str(number)
        place.mkdir()
        out = place / "out.h5"
        whole_a, whole_b = first, second if b == "overwrite" and draw.random() < 0.5 else first
        if there != "absent":
            run = Run(["run", str(first.spec), "--out", str(out)], folder)
            if there == "unfinished":
                run.begun(out, 300)
                run.process.join(draw.uniform(0.1, 0.7) * first.after)
                run.send((signal.SIGKILL,), 0)
            run.end()
        pair = []
        for flag, whole in ((a, whole_a), (b, whole_b)):
            pair.append(Run(["run", str(whole.spec), "--out", str(out), *flags[flag]], folder))
            time.sleep(draw.choice([0, 0, draw.uniform(0, first.before + first.after)]))
        while number % 2 and any(run.process.is_alive() for run in pair):
            counts["readings beside a writer"] += _read_beside(out)
        (code_a, said_a), (code_b, said_b) = (run.end() for run in pair)
        what = (a, b, there, code_a, code_b, said_a, said_b)
        assert {code_a, code_b} <= {0, 2}, what
        # Not both for the other's sake.
        assert 0 in (code_a, code_b) or not ("is writing it" in said_a and "is writing it" in said_b), what
        for code, said in ((code_a, said_a), (code_b, said_b)):
            if code:
                assert (
                    "is writing it" in said
                    or "exists" in said
                    or "state of an unfinished run" in said
                    or ("belongs to another spec" in said)
                ), said
                counts["refused since another was writing"] += "is writing it" in said
        done = [whole.contents for whole, code in ((whole_a, code_a), (whole_b, code_b)) if code == 0]
        if done:
            assert running.contents(out) in done, what
            assert [path.name for path in place.iterdir()] == ["out.h5"], what
        counts["collisions"] += 1
        tell(counts["collisions"], count)
        counts[f"{a} and {b}"] += 1
        counts["both done, one after the other"] += code_a == code_b == 0
    return counts


def _read_beside(out: Path) -> int:
    try:
        return len(finished(out)) > 0
    except pk.ResultsError as error:
        if "no such file" not in str(error):  # which it is between an old file and a new one
            raise
        return 0


def _others_can_run() -> bool:
    """Whether this process may become another user, and that one may read what it imports later."""
    installed = [Path(sys.prefix), Path(torch.__file__), Path(str(pk.__file__))]
    places = {place for path in installed for place in (path.resolve(), *path.resolve().parents)}
    return os.geteuid() == 0 and all(place.stat().st_mode & stat.S_IROTH for place in places)


def limits(folder: Path, count: int, seed: int) -> Counter[str]:
    """Let the system refuse memory, handles, room and permission; then resume without limits, and compare."""
    draw, counts = random.Random(seed), Counter[str]()
    specs = wholes(folder)
    kinds = ["memory", "handles", "file size", *(["user"] if _others_can_run() else [])]
    for number in range(count):
        kind, whole = kinds[number % len(kinds)], draw.choice(specs)
        place = folder / str(number)
        place.mkdir()
        out = place / "out.h5"
        with _accessible(folder) if kind == "user" else contextlib.nullcontext():
            run = Run(["run", str(whole.spec), "--out", str(out)], folder, {kind: _value(kind, draw)})
            code, said = run.end()
        assert code in (0, 1, 2), (kind, code, said)
        assert code == 0 or said.strip(), kind
        assert not list(place.glob("*.tmp")), (kind, list(place.iterdir()))
        counts[f"{kind}: {'enough' if code == 0 else 'refused'}"] += 1
        resumed = Run(["run", str(whole.spec), "--out", str(out), "--resume"], folder)
        ended, said = resumed.end()
        assert ended == 0, said
        assert running.contents(out) == whole.contents
        assert [path.name for path in place.iterdir()] == ["out.h5"]
        counts["limits"] += 1
        tell(counts["limits"], count)
    return counts


def disks(folder: Path, count: int, seed: int) -> Counter[str]:
    """Let a disk fill up, make room, resume and compare; in a mount namespace of its own, which ``unshare -m`` gives."""
    draw, counts = random.Random(seed), Counter[str]()
    specs = wholes(folder)
    for number in range(count):
        whole, place = draw.choice(specs), folder / str(number)
        place.mkdir()
        out = place / "out.h5"
        mount = ["mount", "-t", "tmpfs", "none", str(place), "-o"]
        room = draw.choice([draw.randrange(1, 60), draw.randrange(1_000, 2_600, 40)])
        subprocess.run([*mount, f"size={room}k"], check=True)
        try:
            code, said = Run(["run", str(whole.spec), "--out", str(out)], folder).end()
            assert code in (0, 1, 2), (code, said)
            assert code == 0 or said.strip()
            assert not list(place.glob("*.tmp"))
            before = finished(out)
            counts["enough" if code == 0 else "refused"] += 1
            subprocess.run([*mount, "remount,size=64m"], check=True)
            ended, said = Run(["run", str(whole.spec), "--out", str(out), "--resume"], folder).end()
            assert ended == 0, said
            assert all(finished(out)[key][: len(values)] == values for key, values in before.items())
            assert running.contents(out) == whole.contents
            assert [path.name for path in place.iterdir()] == ["out.h5"]
        finally:
            subprocess.run(["umount", str(place)], check=True)
        counts["disks"] += 1
        tell(counts["disks"], count)
    return counts


def _value(kind: str, draw: random.Random) -> int:
    """A limit that some runs meet."""
    if kind == "user":
        return NOBODY
    if kind == "memory":
        return draw.randrange(0, 64 << 20)
    if kind == "handles":
        return draw.randrange(0, 12)
    return draw.choice([draw.randrange(1, 60_000), draw.randrange(1_000_000, 1_300_000)])


@contextlib.contextmanager
def _accessible(folder: Path) -> Iterator[None]:
    """Let anybody read what lies here, and write standard error here, but not into the folders of outputs."""
    closed = []
    for path in (folder, *folder.parents):
        mode = path.stat().st_mode & 0o777
        if mode & 0o005 != 0o005:
            closed.append((path, mode))
            path.chmod(mode | 0o005)
    folder.chmod(folder.stat().st_mode | 0o007)
    try:
        yield
    finally:
        for path, mode in closed:
            path.chmod(mode)


KINDS = {"kills": kills, "collisions": collisions, "limits": limits, "disks": disks}


def tell(done: int, count: int) -> None:
    """How far this is, on standard error."""
    print(f"{done} of {count}", file=sys.stderr, flush=True)


def report(counts: Counter[str]) -> str:
    """A line per count."""
    return "\n".join(f"{count:6d}  {what}" for what, count in counts.items())


if __name__ == "__main__":
    kind, count, *seed = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        print(report(KINDS[kind](Path(scratch), int(count), int(seed[0]) if seed else 0)))
