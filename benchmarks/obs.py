"""Optimal Brain Surgeon on the problems of its paper: `python benchmarks/obs.py --data DIR [--seeds 10]`.

For networks on MNIST see one_shot.py, for millions of weights block_inverse.py, for all criteria criteria.py.

DIR holds the UCI files of the MONK's problems. Networks are trained with L-BFGS and weight decay, then pruned
one weight at a time (biases count), every step with a fresh inverse and without retraining.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path

import torch
from timing import show
from torch import Tensor, nn

import prunekit as pk
from prunekit_plugins.datasets.monks import Monks
from prunekit_plugins.datasets.xor import XOR

LOSS = "bce_with_logits"


@dataclass(frozen=True)
class Problem:
    """A MONK's problem: hidden units, what is tried, and accuracies and weights left as published in 1992."""

    number: int
    hidden: int
    decays: tuple[float, ...]
    train: float
    test: float
    published: int


PROBLEMS = [
    Problem(1, 3, (1e-4, 1e-3, 3e-3), 1.0, 1.0, 14),
    Problem(2, 2, (1e-5, 1e-4, 1e-3), 1.0, 1.0, 15),
    Problem(3, 2, (3e-3, 1e-2, 2e-2), 114 / 122, 420 / 432, 4),
]
DAMPINGS = (1e-3, 1e-4)


def trained(x: Tensor, y: Tensor, hidden: int, decay: float, seed: int) -> nn.Sequential:
    """A tanh network with one hidden layer and one output, at a minimum of its decayed loss."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(x.shape[1], hidden), nn.Tanh(), nn.Linear(hidden, 1)).double()
    options = {"line_search_fn": "strong_wolfe", "tolerance_grad": 1e-7, "tolerance_change": 1e-10}
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=600, **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(x), y)
        loss = loss + 0.5 * decay * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


def accuracy(model: nn.Module, split: pk.Split) -> float:
    with torch.no_grad():
        return float(((model(split.x.double()) > 0) == (split.y > 0.5)).double().mean())


def one_by_one(model: nn.Module, train: pk.Split, damping: float, watch: Callable[[int], None]) -> None:
    """Prune weight after weight, telling ``watch`` before each how many are left."""
    total = sum(p.numel() for p in model.parameters())
    left = count(total, -1)

    def batches() -> list[tuple[Tensor, Tensor]]:  # asked for at every step
        watch(next(left))
        return [(train.x.double(), train.y.double())]

    criterion = {"name": "obs", "damping": damping}
    scheduler = {"name": "explicit", "levels": [1 - k / total for k in range(total - 1, 0, -1)]}
    pk.prune(model, batches, criterion, scheduler=scheduler, loss=LOSS, prunable={"biases": True})


def monk(problem: Problem, root: Path, seeds: int) -> list[object]:
    """The best over seeds, weight decays and dampings."""
    splits = Monks(root=root, problem=problem.number).load(0)
    train, test = splits.train, splits.test
    assert test is not None
    begun, found = time.perf_counter(), []
    for decay, seed, damping in product(problem.decays, range(seeds), DAMPINGS):
        model = trained(train.x.double(), train.y.double(), problem.hidden, decay, seed)
        setting = f"decay {decay:g}, damping {damping:g}, seed {seed}"

        def watch(left: int, model: nn.Module = model, setting: str = setting) -> None:
            accurate = accuracy(model, train) >= problem.train - 1e-9
            if accurate and accuracy(model, test) >= problem.test - 1e-9:
                found.append((left, setting))

        one_by_one(model, train, damping, watch)
    best, setting = min(found)
    seconds = f"{time.perf_counter() - begun:.0f} s"
    return [f"MONK {problem.number}: weights left", best, f"≤ {problem.published}", setting, seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder that holds the MONK's files, or monks/"
    )
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the networks are tiny
    rows = [monk(problem, arguments.data, arguments.seeds) for problem in PROBLEMS]
    show("Optimal Brain Surgeon without retraining", ["problem", "found", "published", "with", "time"], rows)
    xor(arguments.seeds)


def xor(seeds: int) -> None:
    """One weight of nine removed: networks that still make no error."""
    split = XOR().load(0).train
    x, y = split.x.double(), split.y.double()
    criteria = {"obs": {"name": "obs", "damping": 1e-6}, "magnitude": "magnitude", "obd": "obd"}
    right, learned = dict.fromkeys(criteria, 0), 0
    for seed in range(seeds):
        if accuracy(trained(x, y, 2, 1e-3, seed), split) < 1:
            continue
        learned += 1
        for name, criterion in criteria.items():
            model = trained(x, y, 2, 1e-3, seed)
            scheduler = {"name": "explicit", "levels": [1 / 9]}
            pk.prune(model, [(x, y)], criterion, scheduler=scheduler, loss=LOSS, prunable={"biases": True})
            right[name] += accuracy(model, split) == 1
    rows = [[name, f"{count} of {learned}"] for name, count in right.items()]
    show("XOR: no error after one weight of nine", ["criterion", "networks"], rows)


if __name__ == "__main__":
    main()
