"""Workers as tasks of a Ray cluster."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import Field

from prunekit import Executor, Job, Options, SpecError, Worker
from prunekit_plugins._extra import extra

_FAILED, _KILLED = 1, -9
_STORE = 200 << 20
"""Bytes of shared memory. Only paths pass through it; by default Ray takes a third of the machine's memory."""


class RayOptions(Options):
    """Which cluster, and what each worker needs of it."""

    address: str | None = Field(
        None,
        description="Address of a cluster's head, or auto; default: a cluster of this machine alone, ended with the sweep.",
    )
    gpus: Annotated[float, Field(ge=0)] = Field(
        0, description="GPUs for each worker; parts of one may be shared."
    )


class _Task(Worker):
    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference
        self._error: BaseException | None = None

    def poll(self) -> int | None:
        done, _ = self._ray.wait([self._reference], timeout=0)
        if not done:
            return None
        try:
            self._ray.get(self._reference)
        except self._ray.exceptions.RayTaskError as error:
            self._error = error
            return _FAILED
        except self._ray.exceptions.RayError as error:  # its process or its machine is gone
            self._error = error
            return _KILLED
        return 0

    def stop(self) -> None:
        self._ray.cancel(self._reference, force=True)

    def said(self) -> str:
        return str(self._error or "")


class Ray(Executor):
    """A Ray task for each worker; needs ``pip install "prunekit[ray]"``. prunekit must be on every machine."""

    name = "ray"
    Options = RayOptions
    options: RayOptions
    _ray: Any = None

    def open(self, job: Job) -> None:
        """Join the cluster, or make one.

        Raises:
            SpecError: If Ray is not installed, or the cluster does not answer.
        """
        # Else a driver that uv started makes every worker resolve and install the whole environment again.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._ray = extra(self.name, self.name, f"executor {self.name}")
        own: dict[str, Any] = {
            "num_cpus": job.workers * job.threads,
            "object_store_memory": _STORE,
            "include_dashboard": False,
        }
        given = own if self.options.address is None else {"address": self.options.address}
        try:
            self._ray.init(log_to_driver=False, logging_level="ERROR", **given)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise SpecError(f"executor ray: address {self.options.address!r}: {error}") from None

    def start(self, job: Job, index: int) -> Worker:
        """Give the cluster a task; another is only ever started by the engine, since files tell where to go on."""
        task = self._ray.remote(num_cpus=job.threads, num_gpus=self.options.gpus, max_retries=0, max_calls=1)(
            _task
        )
        return _Task(self._ray, task.remote(job.work))

    def close(self) -> None:
        """Leave the cluster."""
        if self._ray is not None:
            self._ray.shutdown()


def _task(work: Any) -> None:
    work()
