"""Workers kept going: another in the place of each that was killed, until all have ended by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable

from prunekit.errors import RunError
from prunekit.executor import Executor, Job

_PERIOD = 0.2  # seconds between two looks
_MOST = 20
"""Workers that may die young one after another, for each that is wanted. A run that kills its worker is given up before."""
_YOUNG = 60.0
"""Seconds; one that lives longer may have come to the end of its time, as jobs of a cluster do."""


def supervise(executor: Executor, job: Job, looked: Callable[[], None]) -> None:
    """Run workers until all are done.

    Args:
        executor: Starts them.
        job: What they do.
        looked: Called between two looks at them; what it raises stops them.

    Raises:
        PrunekitError: If what the executor needs is not there.
        RunError: If a worker fails, with what it said, or they die again and again.
    """
    died = 0
    try:
        executor.open(job)
        running, born = {}, {}
        try:
            for index in range(job.workers):
                running[index], born[index] = executor.start(job, index), time.monotonic()
            while running:
                looked()
                for index, worker in list(running.items()):
                    code = worker.poll()
                    if code is None:
                        continue
                    del running[index]
                    if code > 0:
                        raise RunError(f"executor {executor.name!r}: a worker failed: {_last(worker.said())}")
                    if code < 0:
                        died = died + 1 if time.monotonic() - born[index] < _YOUNG else 0
                        if died > _MOST * job.workers:
                            raise RunError(
                                f"executor {executor.name!r}: {died} workers were killed: {_last(worker.said())}"
                            )
                        running[index], born[index] = executor.start(job, index), time.monotonic()
                if running:
                    time.sleep(_PERIOD)
        finally:
            for worker in running.values():
                worker.stop()
    finally:
        executor.close()


def _last(said: str) -> str:
    lines = said.strip().splitlines()
    return lines[-1] if lines else "it said nothing"
