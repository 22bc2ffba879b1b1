"""What is held at most, against what was allowed."""

from __future__ import annotations

from collections.abc import Iterator

import memory
import networks
import torch
from figures import Figure, tell

import prunekit as pk


def peak(device: torch.device) -> Iterator[Figure]:
    """The exact GGN diagonal of VGG11: bytes above network, data and result, over `memory`."""
    gpu = device.type == "cuda"
    case = networks.vgg11(1000 if gpu else 10).to(device)
    result = sum(p.numel() * p.element_size() for p in case.weights.values())
    for allowed in (1 << 28, 1 << 30, 4 << 30) if gpu else (1 << 28,):
        if gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if gpu else memory.restart()
        pk.statistics(case.model, case.batches, ["ggn_diagonal"], memory=allowed)
        highest = torch.cuda.max_memory_allocated() if gpu else memory.highest()
        share = (highest - before - result) / allowed
        yield Figure(f"memory {allowed >> 20} MiB: peak", share, "of it", most=1.2)


if __name__ == "__main__":
    tell(peak)
