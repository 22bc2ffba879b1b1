"""Several processes on one machine: how to start them, and what they do there."""

from __future__ import annotations

import copy
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import running

ENDS = {1: [0, 19], 2: [0, 5, 19], 3: [0, 12, 12, 19]}
"""Where each process's examples begin and end; one of three has none."""


def launch(
    context: Any, folder: Path, world: int, work: Callable[..., None], *arguments: Any
) -> list[tuple[int, str, str]]:
    """Do some work in ``world`` processes; exit code, stdout and stderr of each."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    started = [
        context.Process(target=_process, args=(folder, rank, world, port, work, arguments))
        for rank in range(world)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    for process in started:
        if process.is_alive():
            process.kill()
    found = []
    for rank, process in enumerate(started):
        out, err = ((folder / f"{rank}.{stream}").read_text() for stream in ("out", "err"))
        found.append((process.exitcode, out, err))
    return found


def _process(
    folder: Path, rank: int, world: int, port: int, work: Callable[..., None], arguments: Any
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    work(*arguments)


def command(*arguments: Any) -> None:
    """The command line."""
    running.command([str(a) for a in arguments])


def mixed() -> Any:
    """Weights that enter as a sum, so that autograd returns one gradient for both, and an idle one."""
    import torch
    from torch import nn

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.idle = nn.Linear(36, 5), nn.Linear(36, 5), nn.Linear(2, 2)
            self.head = nn.Linear(5, 3)

        def forward(self, x: Any) -> Any:
            weight = self.first.weight + self.second.weight
            return self.head(nn.functional.linear(x.flatten(1), weight).tanh())

    torch.manual_seed(1)
    return Mixed()


def found(rank: int, world: int) -> dict[str, Any]:
    """Statistics, saliencies and masks of this process's examples, for two networks and dtypes."""
    import torch

    import prunekit as pk

    results: dict[str, Any] = {}
    for name, build in (("mixed", mixed), ("convnet", running.convnet)):
        for dtype in (torch.float64, torch.float32):
            torch.manual_seed(0)
            model = build().to(dtype)
            x, y = torch.randn(19, 1, 6, 6, dtype=dtype), torch.randint(3, (19,))
            start, stop = ENDS[world][rank : rank + 2]
            batches = list(zip(x[start:stop].split(4), y[start:stop].split(4), strict=True))
            pruning = pk.prune(copy.deepcopy(model), batches, "qm", sparsity=0.8, steps=4, lam=1e-3)
            wanted = ["gradient", "ggn_diagonal", "empirical_fisher_diagonal", "hessian_diagonal", "uniform"]
            ones = {n: torch.ones_like(p) for n, p in model.named_parameters()}
            kinds = ("ggn", "hessian", "empirical_fisher")
            statistics = dict(pk.statistics(model, batches, wanted, parameters="all"))
            if name == "convnet":  # the other one's weights enter as a sum, not as a layer's
                statistics |= pk.statistics(model, batches, "input_second_moment")
            results[f"{name} {dtype}"] = {
                "statistics": statistics,
                **{k: pk.operator(model, batches, k, parameters="all") @ ones for k in kinds},
                "saliency": pk.saliency(model, batches, "qm", masks=pruning.masks),
                "masks": pruning.masks,
                "weights": {n: p.detach() for n, p in pruning.model.named_parameters()},
                "steps": [dict(step) for step in pruning.steps],
            }
    return results


def library(folder: Path) -> None:
    """The Python functions in a group of the caller's; what came out of it is saved."""
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    errors = [_error(rank, world, kind) for kind in ("batches", "network", "nothing", "additive")]
    torch.save({"errors": errors, "found": found(rank, world)}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def _error(rank: int, world: int, kind: str) -> str:
    """What a process hears when the last one's batches fail, its network differs, or all have no examples."""
    import torch

    import prunekit as pk

    last = rank == world - 1
    model = torch.nn.Linear(3, 4 if kind == "network" and last else 2)
    batch = (torch.randn(4, 3), torch.zeros(4, dtype=torch.long))

    def batches() -> Any:
        if kind == "batches" and last:
            raise OSError("the disk is gone")
        return [] if kind == "nothing" else [batch]

    class Median(pk.Estimator):
        name = "median"
        additive = False

        def finish(self, normaliser: float) -> Any:
            raise AssertionError

    try:
        if kind == "additive":
            from prunekit.statistics.merge import refuse_unshareable

            refuse_unshareable([Median()])
        pk.statistics(model, batches, ["gradient"])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def fragile() -> Any:
    """A network that fails in one process, in the middle of the run."""

    def fail() -> None:
        raise ArithmeticError("this device is broken")

    return _ending(fail)


def mortal() -> Any:
    """A network that kills one process, in the middle of the run."""
    return _ending(lambda: os.kill(os.getpid(), signal.SIGKILL))


def _ending(end: Callable[[], None]) -> Any:
    from torch import nn

    class Ending(nn.Sequential):
        calls = 0

        def forward(self, x: Any) -> Any:
            self.calls += 1
            if self.calls == 20 and os.environ.get("RANK") == "1":
                end()
            return super().forward(x)

    return Ending(nn.Flatten(), nn.Linear(36, 3))
