"""What every executor promises: workers run to their end, and how each ended is told."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from prunekit.errors import PrunekitError
from prunekit.executor import Executor, Job, Worker
from prunekit.testing import component as common
from prunekit.testing.verdict import Subject, demand, not_applicable

Under = Subject[Executor]

_PATIENCE = 120.0  # seconds; a cluster needs some to start
_SHORT = 15.0
_PERIOD = 0.05
_LONG = 600.0


def runs_a_worker_to_its_end(subject: Under) -> None:
    """It does what the job says, once, and the end is told as 0."""
    with _opened(subject.component, 0) as (job, notes):
        worker = subject.component.start(job, 0)
        code = _ended(worker)
        demand(code == 0, f"a worker that is done ended with {code}: {worker.said()}")
        demand(len(_pids(notes)) == 1, f"the job was done {len(_pids(notes))} times")


def tells_a_failure_from_an_end(subject: Under) -> None:
    """As a positive number with what was said, or at once, as an error."""
    with _opened(subject.component, 0, fails=True) as (job, _):
        try:
            worker = subject.component.start(job, 0)
        except PrunekitError:
            return
        code = _ended(worker)
        demand(code > 0, f"a worker that failed ended with {code}; a positive number says so")
        demand("so it goes" in worker.said(), f"what it said is not told: {worker.said()!r}")


def tells_that_a_worker_was_killed(subject: Under) -> None:
    """As a negative number, so that another takes its place."""
    with _working(subject.component) as (worker, pid):
        os.kill(pid, signal.SIGKILL)
        code = _ended(worker)
        demand(code < 0, f"a worker that was killed ended with {code}; a negative number says so")


def stops_a_worker(subject: Under) -> None:
    """It is gone a little later."""
    with _working(subject.component) as (worker, pid):
        worker.stop()
        until = time.monotonic() + _SHORT
        while _alive(pid) and time.monotonic() < until:
            time.sleep(_PERIOD)
        demand(not _alive(pid), f"a worker that was stopped is still at work {_SHORT:.0f} s later")


CHECKS = (
    *common.CHECKS,
    runs_a_worker_to_its_end,
    tells_a_failure_from_an_end,
    tells_that_a_worker_was_killed,
    stops_a_worker,
)


def work(notes: Path, seconds: float, fails: bool) -> None:
    """Note that the process has begun, stay for a while, and end."""
    with open(notes, "a", encoding="utf-8") as file:
        print(os.getpid(), file=file)
    if fails:
        raise WorkerError("so it goes")
    time.sleep(seconds)


class WorkerError(PrunekitError, RuntimeError):
    """What a worker of the checks fails with."""


@contextmanager
def _opened(executor: Executor, seconds: float, fails: bool = False) -> Iterator[tuple[Job, Path]]:
    """An executor that is ready for a job, and where its workers note that they have begun."""
    with TemporaryDirectory() as folder:
        notes = Path(folder) / "notes.txt"
        code = (
            "from pathlib import Path; from prunekit.testing.executor import work; "
            f"work(Path({str(notes)!r}), {seconds}, {fails})"
        )
        job = Job(partial(work, notes, seconds, fails), (sys.executable, "-c", code), 1, 1, Path(folder))
        try:
            executor.open(job)
            yield job, notes
        finally:
            executor.close()


@contextmanager
def _working(executor: Executor) -> Iterator[tuple[Worker, int]]:
    """A worker in the midst of its work, and its process; not where the process would be this one."""
    with _opened(executor, 0) as (job, notes):
        _ended(executor.start(job, 0))
        if _pids(notes) == [os.getpid()]:
            not_applicable("workers are this process itself")
    with _opened(executor, _LONG) as (job, notes):
        worker = executor.start(job, 0)
        try:
            until = time.monotonic() + _PATIENCE
            while not _pids(notes):
                if worker.poll() is not None:
                    demand(False, f"a worker ended before its work was done: {worker.said()}")
                demand(time.monotonic() < until, f"a worker has not begun after {_PATIENCE:.0f} s")
                time.sleep(_PERIOD)
            yield worker, _pids(notes)[0]
        finally:
            for pid in _pids(notes):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _ended(worker: Worker) -> int:
    until = time.monotonic() + _PATIENCE
    while (code := worker.poll()) is None:
        demand(time.monotonic() < until, f"a worker has not ended after {_PATIENCE:.0f} s")
        time.sleep(_PERIOD)
    return code


def _pids(notes: Path) -> list[int]:
    return [int(line) for line in notes.read_text(encoding="utf-8").split()] if notes.exists() else []


def _alive(pid: int) -> bool:
    """Whether a process is still at work; one that is over and has not been waited for is not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path("/proc").exists()
