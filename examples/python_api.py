"""Prune a network of your own from Python, fine-tune it with your own loop, and keep its zeros.

python examples/python_api.py
"""

import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.datasets.digits import Digits

torch.manual_seed(0)
data = Digits().load(seed=0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))


def train(epochs: int, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(epochs):
        for i in torch.randperm(len(data.train)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.train.x[i]), data.train.y[i]).backward()
            optimizer.step()


def test_error() -> float:
    with torch.no_grad():
        return float((model(data.test.x).argmax(1) != data.test.y).float().mean())


train(20, torch.optim.Adam(model.parameters(), lr=2e-3))
print(f"dense: test error {test_error():.1%}")

batches = [(data.train.x, data.train.y)]
pruning = pk.prune(model, batches, criterion="qm", sparsity=0.9, steps=10, lam=1e-3)
for step in pruning.steps:
    print(
        f"  {step.sparsity:6.1%} sparse: predicted {step.predicted_delta_loss:+.4f}, "
        f"measured {step.delta_loss:+.4f}"
    )
print(f"pruned: test error {test_error():.1%}, {pruning.steps[-1].remaining} weights left")

optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
handle = pruning.attach(optimizer)
train(10, optimizer)
handle.remove()
kept = sum(int((model.get_parameter(name) != 0).sum()) for name in pruning.masks)
print(f"fine-tuned: test error {test_error():.1%}, {kept} weights left")
