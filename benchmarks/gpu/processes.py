"""Two data-parallel processes that share one card."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from figures import Figure, tell
from torch import Tensor, distributed, nn

import prunekit as pk

CRITERIA = ("magnitude", "lm", "qm")


def processes(device: torch.device) -> Iterator[Figure]:
    """Each has half of the examples; by gloo, since NCCL wants a card for each."""
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, __file__, device.type, folder]
        running = [subprocess.Popen(command, env=place | {"RANK": rank}, stdout=sys.stderr) for rank in "01"]
        ended = [process.wait() for process in running]
        yield Figure("processes that failed", sum(code != 0 for code in ended), most=0)
        alone = masks(device, slice(None))
        for criterion in CRITERIA:
            both = [torch.load(Path(folder) / f"{rank}.pt")[criterion] for rank in "01"]
            here = {name: mask.cpu() for name, mask in alone[criterion].items()}
            differing = sum(int((mask != other[name]).sum()) for other in both for name, mask in here.items())
            yield Figure(f"{criterion}: masks that differ from one process's", differing, most=0)


def masks(device: torch.device, part: slice) -> dict[str, dict[str, Tensor]]:
    """By criterion, with some of the examples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5)).double().to(device)
    x, y = torch.randn(100, 20).double().to(device), torch.randint(5, (100,)).to(device)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    chosen = {}
    for criterion in CRITERIA:
        model.load_state_dict(start)
        pruning = pk.prune(model, [(x[part], y[part])], criterion, sparsity=0.8, steps=4)
        chosen[criterion] = pruning.masks
    return chosen


def one(device: str, folder: str) -> None:
    """One of the two processes."""
    rank = int(os.environ["RANK"])
    distributed.init_process_group("gloo")
    chosen = masks(torch.device(device), slice(50 * rank, 50 * rank + 50))
    torch.save(
        {c: {n: m.cpu() for n, m in by_name.items()} for c, by_name in chosen.items()},
        Path(folder) / f"{rank}.pt",
    )
    distributed.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:
        one(*sys.argv[1:])
    else:
        tell(processes)
