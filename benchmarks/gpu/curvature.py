"""Diagonals in gradients of the same batch, and against BackPACK."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import networks
import peers
import torch
from figures import Figure, seconds, tell
from networks import Case

import prunekit as pk
from prunekit.network.restore import full_float32

MEMORY = 8 << 30
CASES: dict[str, tuple[Callable[[int], Case], dict[str, float]]] = {
    "MLP": (networks.mlp, {"ggn_diagonal": 2.0, "ggn_mc_diagonal": 1.6, "empirical_fisher_diagonal": 1.6}),
    "VGG11": (
        networks.vgg11,
        {"ggn_diagonal": 6.5, "ggn_mc_diagonal": 2.2, "empirical_fisher_diagonal": 2.2},
    ),
    "PreActResNet18": (
        networks.preact_resnet18,
        {"ggn_diagonal": 6.0, "ggn_mc_diagonal": 2.2, "empirical_fisher_diagonal": 2.2},
    ),
}


def curvature(device: torch.device) -> Iterator[Figure]:
    """Three networks at two batch sizes; the targets are those of the CPU."""
    gpu = device.type == "cuda"
    chosen = CASES if gpu else {"MLP": CASES["MLP"]}
    for examples in (128, 1000) if gpu else (32,):
        for name, (build, targets) in chosen.items():
            case = build(examples).to(device)
            label = f"{name}, {examples} examples"
            as_set = seconds(case.gradient, device)
            with full_float32():  # as statistics are; on a GPU torch's default for convolutions is TF32
                gradient = seconds(case.gradient, device)
            yield Figure(f"{label}: bare gradient with torch's defaults", 1e3 * as_set, "ms")
            yield Figure(f"{label}: bare gradient in full float32", 1e3 * gradient, "ms")
            for statistic, most in {"gradient": 1.1, **targets}.items():
                seeds = count()
                taken = seconds(
                    lambda case=case, statistic=statistic, seeds=seeds: pk.statistics(
                        case.model, case.batches, [statistic], seed=next(seeds), memory=MEMORY
                    ),
                    device,
                )
                yield Figure(
                    f"{label}: {statistic}", taken / gradient, "gradients", most=most if gpu else None
                )
                if statistic == "ggn_diagonal":
                    exact = taken
            yield from against(case, label, exact, device)


def against(case: Case, label: str, exact: float, device: torch.device) -> Iterator[Figure]:
    """BackPACK's exact diagonal, where it is installed, can, and has the memory."""
    if not peers.installed("backpack") or "ResNet" in label:
        return
    own_task = peers.backpack(case, "DiagGGNExact")

    def task() -> peers.Values:
        with full_float32():
            return own_task()

    try:
        expected = task()
    except torch.OutOfMemoryError:
        yield Figure(f"{label}: BackPACK runs out of memory", None)
        return
    own = pk.statistics(case.model, case.batches, ["ggn_diagonal"], memory=MEMORY)["ggn_diagonal"]
    off = peers.distance(own, expected)
    taken = seconds(task, device, 2)
    yield Figure(f"{label}: faster than BackPACK", taken / exact, "times", right=off < 1e-3)


if __name__ == "__main__":
    tell(curvature)
