"""Workers in processes of their own: each with its threads, and another in the place of one that died."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

_PERIOD = 0.2
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_MOST = 20
"""Times that workers may die, of each; more is no accident."""


def workers(command: Sequence[str], count: int, threads: int, looked: Callable[[], None]) -> int:
    """Run several workers until all are done.

    Args:
        command: What each runs.
        count: How many.
        threads: Of torch in each, so that numbers do not depend on how many there are.
        looked: Called between two looks at them; what it raises stops them.

    Returns:
        How many died and had another in their place.

    Raises:
        RuntimeError: If they die again and again.
    """
    environment = {**os.environ, **{name: str(threads) for name in _THREADS}}
    running = [_started(command, environment) for _ in range(count)]
    died = 0
    try:
        while running:
            time.sleep(_PERIOD)
            looked()
            for worker in list(running):
                code = worker.poll()
                if code is None:
                    continue
                running.remove(worker)
                if code < 0:  # killed; its run is free again
                    died += 1
                    if died > _MOST * count:
                        raise RuntimeError(f"{died} workers were killed, the last by signal {-code}")
                    running.append(_started(command, environment))
    finally:
        for worker in running:
            worker.terminate()
        for worker in running:
            worker.wait()
    return died


def _started(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    # Detached from the terminal's interrupt, which the one that started them passes on.
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )


def command_of(arguments: Sequence[str]) -> list[str]:
    """The command line again, in this Python."""
    return [sys.executable, "-m", "prunekit_cli", *arguments]
