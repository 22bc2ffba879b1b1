"""The command itself does the work."""

from __future__ import annotations

from prunekit import Executor, Job, SpecError, Worker


class _Over(Worker):
    def poll(self) -> int:
        return 0

    def stop(self) -> None:
        """There is nothing to stop."""


class Inline(Executor):
    """One run after another, in this process."""

    name = "inline"

    def open(self, job: Job) -> None:
        """Refuse several workers.

        Raises:
            SpecError: If there is more than one.
        """
        if job.workers > 1:
            raise SpecError(f"executor inline: is one worker, not {job.workers}; take process")

    def start(self, job: Job, index: int) -> Worker:
        """Do all the work."""
        job.work()
        return _Over()
