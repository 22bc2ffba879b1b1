"""A long run of many small steps, which stands or falls with how often the host waits for the device."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from figures import Figure, tell, wait
from torch import nn
from torch.profiler import ProfilerActivity, profile

import prunekit as pk
from prunekit_plugins.models.mlp import MLP

WAITS = 20  # those that docs/gpu.md names, for three layers, one slice of examples


def steps(device: torch.device) -> Iterator[Figure]:
    """QM on the MLP of 784-300-100-10, 1000 examples a step."""
    gpu = device.type == "cuda"
    number = 140 if gpu else 6
    torch.manual_seed(0)
    model = MLP().build(pk.DataInfo((784,), 10, "classification")).to(device)
    batch = torch.randn(1000, 784, device=device), torch.randint(10, (1000,), device=device)

    def prune(count: int) -> float:
        copied: nn.Module = copy.deepcopy(model)
        wait(device)
        start = time.perf_counter()
        pk.prune(copied, [batch], "qm", sparsity=0.98847, steps=count)
        wait(device)
        return time.perf_counter() - start

    prune(2)
    yield Figure(f"{number} steps without evaluation", min(prune(number) for _ in range(2)), "s")
    taken = whole(number, gpu)
    yield Figure(
        f"a run of {number} steps, every split evaluated at each", taken, "s", most=3 if gpu else None
    )
    if gpu:
        yield Figure("waits for the device in a step", (waits(prune, 12) - waits(prune, 2)) / 10, most=WAITS)
        yield Figure("time in which the device idles", 100 * idle(prune), "%")


def whole(number: int, gpu: bool) -> float:
    """Seconds of `pk.run` without training, its start left out: from the first step to the last."""
    spec = {
        "version": 1,
        "device": "cuda" if gpu else "cpu",
        "model": "mlp",
        "dataset": {"name": "python", "factory": "made:splits" if gpu else "made:few"},
        "prune": {
            "criterion": "qm",
            "examples": 1000 if gpu else 100,
            "scheduler": {"name": "exponential", "sparsity": 0.98847, "steps": number},
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.h5"
        pk.run(spec, path).close()
        start = time.perf_counter()
        pk.run(spec, path, overwrite=True).close()
        return time.perf_counter() - start


def waits(prune: object, count: int) -> int:
    """How often torch says that the host waits."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")  # that this mode is a prototype
            torch.cuda.set_sync_debug_mode("warn")
            warnings.simplefilter("always")
            prune(count)  # type: ignore[operator]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def idle(prune: object) -> float:
    """The share of the time of some steps in which no kernel runs; kernels of one stream do not overlap."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        taken = prune(20)  # type: ignore[operator]
    busy = sum(event.self_device_time_total for event in profiled.key_averages()) / 1e6
    return max(0.0, 1 - busy / taken)


if __name__ == "__main__":
    tell(steps)
