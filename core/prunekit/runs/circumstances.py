"""What a run's numbers rest on besides its spec and its files, and whether a run that goes on has the same."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from prunekit import distributed
from prunekit.records import Plain, Row
from prunekit.runs.plan import Plan
from prunekit.version import __version__

try:
    import resource
except ModuleNotFoundError:  # not on Windows
    resource = None  # type: ignore[assignment]

COSTS = ("seconds", "peak_memory", "peak_gpu_memory")
"""What a run has taken so far."""
_OF_NO_CONSEQUENCE = ("date", "folder", "platform", "cores", "error", *COSTS)
"""What may be another for a run that goes on without any number becoming another."""


def circumstances(plan: Plan, folder: Path) -> dict[str, Plain]:
    """What a result depends on besides the spec and its inputs, and when and where it was made.

    Args:
        plan: The run's.
        folder: Where relative paths of the spec start.
    """
    device = plan.device
    backends: Plain = torch.backends
    facts: dict[str, Plain] = {
        "prunekit": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # of a class of its own, which a state cannot hold
        "numpy": np.__version__,
        "plugins": plan.plugins,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": str(folder),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": bool(backends.mkldnn.is_available() and backends.mkldnn.enabled),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "world": distributed.world(),
        "best_epoch": _BEST_EPOCH,
        "splits": {name: len(getattr(plan.splits, name) or ()) for name in ("train", "valid", "test")},
    }
    if plan.examples is not None:
        facts["examples"] = plan.examples
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cudnn"] = {
            key: getattr(backends.cudnn, key) for key in ("enabled", "benchmark", "deterministic")
        }
    return facts


def costs(device: torch.device, seconds: float) -> dict[str, Plain]:
    """What a run has taken so far: seconds, and the most bytes that its process has held, on the device too."""
    taken: dict[str, Plain] = {"seconds": round(seconds, 3)}
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024
        taken["peak_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        taken["peak_gpu_memory"] = torch.cuda.max_memory_allocated(device)
    return taken


_BEST_EPOCH = "lowest validation error, or loss where there is none; of equal ones the first; without validation the last"
"""Which epoch's weights a training phase leaves."""


def changes(began: Row, resumptions: Sequence[Row], now: Row) -> dict[str, dict[str, Plain]]:
    """What is another than when the run went on last, as far as numbers may rest on it.

    Args:
        began: The circumstances in which the run began; empty where they are not known.
        resumptions: Those before, in order.
        now: The circumstances now.

    Returns:
        Name to ``{"before": …, "now": …}``.
    """
    last: dict[str, Plain] = dict(began)
    for resumption in resumptions:
        last |= {name: change["now"] for name, change in resumption["changes"].items()}
    names = [name for name in {**last, **now} if name not in _OF_NO_CONSEQUENCE] if began else []
    return {
        name: {"before": last.get(name), "now": now.get(name)}
        for name in names
        if last.get(name) != now.get(name)
    }


def described(changes: Mapping[str, Row]) -> str:
    """Changes in words."""
    return ", ".join(
        f"{name}: {change['before']} before, {change['now']} now" for name, change in changes.items()
    )


def _cpu() -> str:
    """The processor's model, or its kind where the system does not tell."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
