"""The empirical Fisher's inverse in blocks for millions of weights, against a loop over the blocks in plain torch.

The network is a stack of linear layers with 11 million weights; 500 examples stream by, 20 at a time.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator

import torch
from timing import show
from torch import Tensor, nn

import prunekit as pk

WIDTH, DEPTH, SIZE, EXAMPLES, BATCH, DAMPING = 1480, 5, 128, 500, 20, 1e-3
LOOPED = 2000  # blocks of which the loop is timed; its time is proportional to their number


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10, bias=False))


class Stream:
    """The same random batches at every reading."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        source = torch.Generator().manual_seed(1)
        for _ in range(EXAMPLES // BATCH):
            x = torch.randn(BATCH, WIDTH, generator=source)
            yield x, torch.randint(10, (BATCH,), generator=source)


def example_gradients(model: nn.Module, x: Tensor, y: Tensor, name: str, weights: slice) -> Tensor:
    """One example after another, ``[N, weights]`` of one parameter."""
    parameter = model.get_parameter(name)
    rows = []
    for i in range(len(x)):
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        (gradient,) = torch.autograd.grad(loss, parameter)
        rows.append(gradient.flatten()[weights])
    return torch.stack(rows)


def plain_loop(model: nn.Module) -> dict[str, float]:
    """Seconds for all blocks, from some: a Gram matrix and an inverse each, and the recursion of WoodFisher's code."""
    name, some = "4.weight", slice(0, LOOPED * SIZE)
    rows = torch.cat([example_gradients(model, x, y, name, some) for x, y in Stream()])
    count = sum(-(-p.numel() // SIZE) for p in model.parameters())
    begun, worst = time.perf_counter(), 0.0
    for block in range(LOOPED):
        part = rows[:, block * SIZE : (block + 1) * SIZE]
        torch.linalg.inv(part.t() @ part / len(part) + DAMPING * torch.eye(SIZE))
    direct = (time.perf_counter() - begun) / LOOPED * count
    begun, few = time.perf_counter(), 20
    for block in range(few):
        inverse = torch.eye(SIZE) / DAMPING
        for g in rows[:, block * SIZE : (block + 1) * SIZE]:
            moved = inverse @ g
            inverse.addr_(moved, moved, alpha=-1 / (len(rows) + float(g @ moved)))
        worst = max(worst, float(inverse.abs().max()))
    recursion = (time.perf_counter() - begun) / few * count
    return {
        "Gram matrix and inverse, gradients given": direct,
        "Sherman-Morrison, gradients given": recursion,
    }


def main() -> None:
    """Print the table."""
    model = network()
    weights = sum(p.numel() for p in model.parameters())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    request = pk.Statistic("inverse_block", curvature="empirical_fisher", size=SIZE, damping=DAMPING)
    begun = time.perf_counter()
    pk.statistics(model, Stream(), request, memory=8 << 30)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows: list[list[object]] = [
        [
            "inverse_block, gradients included",
            f"{seconds:.0f} s",
            f"{peak / 2**20:.1f} GiB",
            "1.0",
            "< 600 s, < 10 GB",
        ],
    ]
    for what, looped in plain_loop(model).items():
        rows.append(
            [f"plain loop: {what}", f"{looped:.0f} s", "", f"{looped / seconds:.1f}", "≥ 3 times slower"]
        )
    title = f"{weights:,} weights in blocks of {SIZE}, {EXAMPLES} examples ({before / 2**20:.1f} GiB before)"
    show(title, ["what", "seconds", "peak", "ratio", "target"], rows)


if __name__ == "__main__":
    main()
