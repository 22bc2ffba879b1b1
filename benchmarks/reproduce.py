"""The paper's main job beside the authors' own code: `python benchmarks/reproduce.py --data DIR --theirs CLONE`.

One network, 784-300-100-10 on MNIST, to 98.85 % by QM: so many steps, 1000 new examples for each, the loss and error of all
three splits measured after each. Theirs is github.com/Thrandis/loss-models-pruning as it is cloned, on the CPU, its examples
in batches of 1000 and, as for their VGG, of 100; the measuring between its steps is written here like theirs. Prints one
table; ours includes loading the data and writing the results.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
import time
import warnings
from importlib import import_module
from math import inf
from pathlib import Path
from typing import Any

import torch
from timing import show
from torch.utils.data import DataLoader, TensorDataset

import prunekit as pk

SPARSITY = 0.98847


def ours(data: Path, steps: int) -> float:
    """Seconds of the whole run."""
    spec = {
        "version": 1,
        "seed": 1111,
        "model": {
            "name": "mlp",
            "hidden": [300, 100],
            "activation": "tanh",
            "checkpoint": str(data / "mlp-mnist" / "1111.safetensors"),
        },
        "dataset": {"name": "mnist", "root": str(data), "split_seed": 1111},
        "device": "cpu",
        "prune": {
            "criterion": {"name": "qm", "lambda": 1e-3},
            "scheduler": {"name": "exponential", "sparsity": SPARSITY, "steps": steps},
            "examples": 1000,
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        pk.run(spec, Path(folder) / "run.h5").close()
        return time.perf_counter() - start


def theirs(data: Path, clone: Path, steps: int, batch: int) -> float:
    """Seconds of their masks and of measuring each; nothing is loaded meanwhile."""
    sys.path.insert(0, str(clone))
    pruning: Any = import_module("pruning")
    for cls in (pruning.GradComputer, pruning.DiagonalGGNComputer):
        assert inspect.getfullargspec(cls.compute).args[3:] == ["device", "n"]
        cls.compute.__defaults__ = ("cpu", inf)
    splits = loaded(data)
    network = dense(data)
    sets = [TensorDataset(x, y) for x, y in splits]
    loader = DataLoader(sets[0], batch_size=batch, shuffle=True)
    whole = [DataLoader(sets[0], batch_size=1000, shuffle=True), (splits[1],), (splits[2],)]
    rate, mask, before = (1 - SPARSITY) ** (1 / steps), None, 1.0
    start = time.perf_counter()
    for _ in range(steps):
        before *= rate
        mask = pruning.get_mask("QM", network, 1 - before, loader, 1000, reg=1e-3, previous_mask=mask)
        pruning.mask_net(network, mask)
        for one in whole:
            measured(network, one)
    return time.perf_counter() - start


@torch.no_grad()
def measured(network: Any, batches: Any) -> tuple[float, float]:
    """As their ``eval_loop``."""
    network.eval()
    loss = correct = total = count = 0.0
    for inputs, targets in batches:
        outputs = network(inputs)
        loss += torch.nn.functional.cross_entropy(outputs, targets).item()
        correct += float(outputs.max(1)[1].eq(targets).sum())
        total, count = total + len(targets), count + 1
    return loss / count, 1 - correct / total


def loaded(data: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The three splits, flat."""
    from prunekit.plugins.build import component

    splits = component("dataset", {"name": "mnist", "root": str(data)}).load(1111)
    return [(s.x.flatten(1).float(), s.y) for s in (splits.train, splits.valid, splits.test)]


def dense(data: Path) -> torch.nn.Module:
    """Their network with the trained weights."""
    from safetensors.torch import load_file

    state = load_file(data / "mlp-mnist" / "1111.safetensors")
    layers: list[torch.nn.Module] = []
    for i in range(3):
        weight = state[f"fc.{i}.weight"]
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": state[f"fc.{i}.bias"]})
        layers += [layer, torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of MNIST and mlp-mnist")
    parser.add_argument("--theirs", type=Path, required=True, help="a clone of their repository")
    parser.add_argument("--steps", type=int, default=140)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", "Using a non-full backward hook")
    ours(given.data, 2)
    mine = ours(given.data, given.steps)
    rows: list[list[object]] = [[f"prunekit, {given.steps} steps, the whole run", f"{mine:.1f} s", "", ""]]
    for batch, target in ((1000, ">= 4"), (100, ">= 8")):
        seconds = theirs(given.data, given.theirs, given.steps, batch)
        rows.append([f"their code, batches of {batch}", f"{seconds:.1f} s", f"{seconds / mine:.1f}", target])
    show(f"QM, {given.steps} steps, {torch.get_num_threads()} threads", ["", "time", "ratio", "target"], rows)


if __name__ == "__main__":
    main()
