"""A training epoch against a bare loop and a DataLoader's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from figures import Figure, seconds, tell
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import prunekit as pk
from prunekit.plugins.build import as_loss
from prunekit.training.loop import Trainer
from prunekit.training.settings import SGD, Train
from prunekit_plugins.models.mlp import MLP

BATCH = 100
OPTIMIZER = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}


def training(device: torch.device) -> Iterator[Figure]:
    """The MLP of 784-300-100-10 on images of MNIST's number and shape; on a GPU a step is one CUDA graph."""
    gpu = device.type == "cuda"
    count = 50_000 if gpu else 1_000
    torch.manual_seed(0)
    x, y = torch.randn(count, 784, device=device), torch.randint(10, (count,), device=device)
    model = MLP().build(pk.DataInfo((784,), 10, "classification")).to(device)
    optimizer = torch.optim.SGD(model.parameters(), fused=True, **OPTIMIZER)
    splits = pk.Splits(pk.Split(x, y))
    settings = Train(epochs=9, batch_size=BATCH, optimizer=SGD(name="sgd", **OPTIMIZER))
    own = Trainer(model, splits, as_loss("cross_entropy"), settings, 0, "dense")
    loader = DataLoader(TensorDataset(x.cpu(), y.cpu()), batch_size=BATCH, shuffle=True, pin_memory=gpu)

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    def bare() -> None:
        for indices in torch.randperm(count, device=device).split(BATCH):
            step(x[indices], y[indices])

    def loaded() -> None:
        for inputs, targets in loader:
            step(inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True))

    ours, loop, slow = (seconds(task, device, 3) for task in (lambda: own.epoch(0), bare, loaded))
    yield Figure(f"an epoch of {count:,} images", 1e3 * ours, "ms")
    yield Figure("faster than a bare loop over slices", loop / ours, "times", least=3 if gpu else None)
    yield Figure("faster than a DataLoader's loop", slow / ours, "times")


if __name__ == "__main__":
    tell(training)
