"""Executors: where the workers of a sweep run. Files are the state, so a worker that dies loses nothing but its time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prunekit.component import Component


@dataclass(frozen=True)
class Job:
    """What each worker of a sweep does: takes one run after another until none is left, and ends.

    Attributes:
        work: Does the job in the calling process; can be pickled, by reference to prunekit.
        command: Does the same, as a command line of this machine.
        workers: How many work at a time.
        threads: Threads of torch in each; ``work`` and ``command`` set them.
        folder: The sweep's folder, on a disk that all workers share.
        gpus: Names by which CUDA knows the GPUs of this machine.
    """

    work: Callable[[], None]
    command: tuple[str, ...]
    workers: int
    threads: int
    folder: Path
    gpus: tuple[str, ...] = ()


class Worker(ABC):
    """A worker that was started."""

    @abstractmethod
    def poll(self) -> int | None:
        """How it ended; returns at once.

        Returns:
            ``None`` while it is at work; 0 once it has nothing more to do; a negative number if it was killed, and
            another should continue in its place; a positive one if it failed.
        """

    @abstractmethod
    def stop(self) -> None:
        """End it, if it is still at work; what it was doing can be resumed."""

    def said(self) -> str:
        """What it printed on stderr, or why it failed."""
        return ""


class Executor(Component):
    """Starts workers. The engine watches them, and replaces those that were killed."""

    kind = "executor"

    def open(self, job: Job) -> None:
        """Get ready; called once, before the first worker is started.

        Raises:
            PrunekitError: If something it needs is missing; the message says what.
        """

    @abstractmethod
    def start(self, job: Job, index: int) -> Worker:
        """Start a worker.

        Args:
            job: What it does.
            index: Its number, from 0 to ``job.workers - 1``; one that takes a dead one's place has the same.
        """

    def close(self) -> None:
        """Tidy up; called once, after the last worker has ended."""
