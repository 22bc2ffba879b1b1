"""Workers as jobs of Slurm, by submitit."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import Field

from prunekit import Executor, Job, Options, SpecError, Worker
from prunekit_plugins._extra import extra

_FAILED, _KILLED = 1, -9
_PATIENCE, _PERIOD = 10.0, 0.1  # seconds that a job may take to end; between two looks


class SubmititOptions(Options):
    """What Slurm is asked for, for each worker."""

    cluster: Literal["slurm", "local"] | None = Field(
        None,
        description="Where jobs run; local is this machine. Default: Slurm where it is installed, else local.",
    )
    minutes: Annotated[int, Field(ge=1)] = Field(
        60, description="Minutes after which a worker is ended; the engine then starts another in its place."
    )
    partition: str | None = Field(None, description="Slurm partition.")
    gpus: Annotated[int, Field(ge=0)] = Field(0, description="GPUs for each worker.")
    memory_gb: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Memory for each worker, in GB."
    )
    slurm: dict[str, str | int | bool] = Field(
        default_factory=dict, description="More parameters of sbatch, as {account: mine}."
    )


class _Submitted(Worker):
    def __init__(self, job: Any) -> None:
        self._job, self._said = job, ""

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        error = self._job.exception()  # which waits for slow disks if there is no result
        self._said = str(error or "")
        if error is None:
            return 0
        return _FAILED if type(error).__name__ == "FailedJobError" else _KILLED

    def stop(self) -> None:
        if not self._job.done():
            self._job.cancel()
        until = time.monotonic() + _PATIENCE
        while not self._job.done() and time.monotonic() < until:
            time.sleep(_PERIOD)

    def said(self) -> str:
        return self._said


class Submitit(Executor):
    """A Slurm job for each worker, or a process of this machine; needs ``pip install "prunekit[submitit]"``.

    What the jobs print is in the sweep's folder, under ``logs``.
    """

    name = "submitit"
    Options = SubmititOptions
    options: SubmititOptions
    _executor: Any = None

    def open(self, job: Job) -> None:
        """Tell submitit what each job needs.

        Raises:
            SpecError: If submitit is not installed, or does not know a parameter.
        """
        submitit = extra(self.name, self.name, f"executor {self.name}")
        options = self.options
        try:
            self._executor = submitit.AutoExecutor(folder=job.folder / "logs", cluster=options.cluster)
            given = {"slurm_partition": options.partition, "mem_gb": options.memory_gb}
            self._executor.update_parameters(
                name="prunekit",
                timeout_min=options.minutes,
                cpus_per_task=job.threads,
                gpus_per_node=options.gpus,
                **{key: value for key, value in given.items() if value is not None},
                **{f"slurm_{key}": value for key, value in options.slurm.items()},
            )
        except (NameError, TypeError, ValueError, RuntimeError) as error:
            raise SpecError(f"executor submitit: {error}") from None

    def start(self, job: Job, index: int) -> Worker:
        """Submit a job."""
        return _Submitted(self._executor.submit(job.work))
