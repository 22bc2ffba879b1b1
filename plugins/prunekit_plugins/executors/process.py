"""Workers in processes of their own on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from tempfile import TemporaryFile
from typing import IO

from prunekit import Executor, Job, Worker

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_INTERRUPTED = 130


class _Process(Worker):
    def __init__(self, command: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._errors: IO[bytes] = TemporaryFile()  # noqa: SIM115 (as long as the worker)
        self._said = ""
        # Detached from the terminal's interrupt, which the one that started them passes on.
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
        )

    def poll(self) -> int | None:
        code = self._process.poll()
        if code is not None:
            self._read()
        return -signal.SIGINT if code == _INTERRUPTED else code

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()
        self._read()

    def said(self) -> str:
        return self._said

    def _read(self) -> None:
        if not self._errors.closed:
            self._errors.seek(0)
            self._said = self._errors.read().decode(errors="replace")
            self._errors.close()


class Process(Executor):
    """A process for each worker. Where there are GPUs, they take turns: each sees one."""

    name = "process"

    def start(self, job: Job, index: int) -> Worker:
        """Start a process with its own threads and, where there are GPUs, its own."""
        environment = {**os.environ, **{name: str(job.threads) for name in _THREADS}}
        if job.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = job.gpus[index % len(job.gpus)]
        return _Process(job.command, environment)
