"""Layer-wise and joint methods on one large layer."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from figures import Figure, tell, wait
from torch import nn

import prunekit as pk

SECONDS = 15.0  # for each method
METHODS: dict[str, dict[str, object]] = {
    "sparsegpt": {"name": "sparsegpt"},
    "obc": {"name": "obc"},
    "obs_kfac": {"name": "obs_kfac", "curvature": "ggn_mc", "damping": 1e-2},
    "combinatorial": {"name": "combinatorial", "curvature": "ggn_mc", "damping": 0.1},
}


def layers(device: torch.device) -> Iterator[Figure]:
    """Half of a layer of 4096 × 4096 in one step, or of the largest for which a method has the time."""
    gpu = device.type == "cuda"
    sizes, examples = ((512, 1024, 2048, 4096), 2048) if gpu else ((32, 64), 64)
    for name, criterion in METHODS.items():
        once(64, examples, criterion, device)  # libraries start
        taken, reached, held = 0.0, 0, 0
        for size in sizes:
            if reached and 8 * taken > SECONDS:  # eightfold work
                break
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            taken, reached = once(size, examples, criterion, device), size
            held = torch.cuda.max_memory_allocated() if gpu else 0
        yield Figure(f"{name}, {reached} × {reached}", taken, "s")
        if gpu:
            yield Figure(f"{name}, {reached} × {reached}: peak", held / 1e9, "GB")


def once(size: int, examples: int, criterion: dict[str, object], device: torch.device) -> float:
    """Seconds of a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 10)).to(device)
    batch = torch.randn(examples, size, device=device), torch.randint(10, (examples,), device=device)
    wait(device)
    start = time.perf_counter()
    pk.prune(
        model, [batch], criterion, sparsity=0.5, steps=1, prunable={"include": ["0.weight"]}, memory=16 << 30
    )
    wait(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    tell(layers)
