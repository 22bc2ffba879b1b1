"""Pruning without retraining on MNIST, against published figures: `python benchmarks/one_shot.py --data DIR [--seeds 5]`.

Two networks: 784-40-20-10 without biases at 90, 95 and 98 % (CHITA++'s table), trained here; and the paper's
784-300-100-10 at 98.847 %, from DIR/mlp-mnist/1111.safetensors. DIR also holds MNIST/.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import mean

import torch
from safetensors.torch import load_file
from timing import show
from torch import Tensor, nn

import prunekit as pk
from prunekit_plugins.datasets.mnist import MNIST

PUBLISHED = {0.9: 95.5, 0.95: 94.7, 0.98: 90.7}
STEPS, EXAMPLES = 30, 5000
PAPER = [  # criterion, steps, examples, target of the loss's change
    ({"name": "qm", "lambda": 1e-3}, 140, 1000, "1.05 published"),
    ({"name": "obs_rows", "update": False}, 14, 2000, ""),
    ({"name": "obs_rows"}, 14, 2000, "≤ 0.50"),
    ({"name": "combinatorial"}, 14, 2000, "≤ 0.50 in < 15 s"),
    ({"name": "combinatorial"}, 40, 5000, "≤ 0.40"),
]


class Samples:
    """A fresh sample of the training examples at every step."""

    def __init__(self, split: pk.Split, examples: int, seed: int) -> None:
        self._split, self._examples = split, examples
        self._source = torch.Generator().manual_seed(seed)

    def __call__(self) -> list[tuple[Tensor, Tensor]]:
        chosen = torch.randperm(len(self._split.x), generator=self._source)[: self._examples]
        return [(self._split.x[chosen], self._split.y[chosen])]


def loss_and_accuracy(model: nn.Module, split: pk.Split) -> tuple[float, float]:
    with torch.no_grad():
        outputs = model(split.x)
    right = (outputs.argmax(1) == split.y).double().mean()
    return float(nn.functional.cross_entropy(outputs, split.y)), 100 * float(right)


def small(split: pk.Split, seed: int) -> nn.Sequential:
    """784-40-20-10 without biases: Adam, 1e-3, batches of 256, 15 epochs."""
    torch.manual_seed(seed)
    sizes = [784, 40, 20, 10]
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b, bias=False), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), *layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(15):
        for chosen in torch.randperm(len(split.x)).split(256):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(split.x[chosen]), split.y[chosen]).backward()
            optimizer.step()
    return model


def papers(root: Path) -> nn.Sequential:
    """784-300-100-10 with tanh, trained by the paper's protocol."""
    tensors = load_file(root / "mlp-mnist" / "1111.safetensors")
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.Tanh(), nn.Linear(300, 100), nn.Tanh(), nn.Linear(100, 10)
    )
    with torch.no_grad():
        for p, name in zip(
            model.parameters(), sorted(tensors, key=lambda n: (n.split(".")[1], "b" in n[-4:])), strict=True
        ):
            p.copy_(tensors[name])
    return model


def small_rows(train: pk.Split, test: pk.Split, seeds: int) -> Iterator[list[object]]:
    """Accuracies at the published sparsities, on the way to the last."""
    last = max(PUBLISHED)
    levels = sorted({1 - (1 - last) ** (i / STEPS) for i in range(1, STEPS)} | set(PUBLISHED))
    found: dict[float, list[float]] = {level: [] for level in PUBLISHED}
    for seed in range(seeds):
        model, samples = small(train, seed), Samples(train, EXAMPLES, seed)
        dense, begun, step = loss_and_accuracy(model, test)[1], time.perf_counter(), 0

        def batches(model: nn.Module = model, samples: Samples = samples) -> list[tuple[Tensor, Tensor]]:
            nonlocal step
            if step and levels[step - 1] in PUBLISHED:
                found[levels[step - 1]].append(loss_and_accuracy(model, test)[1])
            step += 1
            return samples()

        pk.prune(
            model, batches, "combinatorial", scheduler={"name": "explicit", "levels": levels}, memory=2 << 30
        )
        found[last].append(loss_and_accuracy(model, test)[1])
        now = [f"{values[-1]:.2f}" for values in found.values()]
        yield [f"seed {seed}, dense {dense:.2f}", *now, f"{time.perf_counter() - begun:.0f} s"]
    yield ["mean", *(f"{mean(values):.2f}" for values in found.values()), ""]
    yield ["best published (CHITA++)", *PUBLISHED.values(), ""]


def paper_rows(train: pk.Split, test: pk.Split, root: Path) -> Iterator[list[object]]:
    """Measured change of the training loss."""
    for criterion, steps, examples, target in PAPER:
        model, begun = papers(root), time.perf_counter()
        before, _ = loss_and_accuracy(model, train)
        options = {"sparsity": 0.98847, "steps": steps, "memory": 4 << 30}
        pk.prune(model, Samples(train, examples, 0), criterion, **options)
        seconds = time.perf_counter() - begun
        after, _ = loss_and_accuracy(model, train)
        name = " ".join([str(criterion["name"]), *(f"{k}={v}" for k, v in criterion.items() if k != "name")])
        accuracy = f"{loss_and_accuracy(model, test)[1]:.2f}"
        yield [name, steps, examples, f"{after - before:.3f}", target, accuracy, f"{seconds:.1f} s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds MNIST/ and mlp-mnist/")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    splits = MNIST(root=arguments.data).load(1111)
    assert splits.test is not None
    columns = ["change of the training loss", "steps", "examples", "found", "target", "test %", "time"]
    show("784-300-100-10 at 98.847 %", columns, list(paper_rows(splits.train, splits.test, arguments.data)))
    columns = ["test accuracy, combinatorial", *(f"{level:.0%}" for level in PUBLISHED), "time"]
    show("784-40-20-10", columns, list(small_rows(splits.train, splits.test, arguments.seeds)))


if __name__ == "__main__":
    main()
