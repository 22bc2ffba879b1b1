"""Matrices that operators stand for, written out, and networks that are awkward to take apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, float64, nn

import prunekit as pk


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """All values in one vector."""
    return torch.cat([t.detach().flatten() for t in tensors.values()])


def dense(model: nn.Module, batches: Any, curvature: str, parameters: Any) -> Tensor:
    """Over some parameters, column by column from the operator, which has its own oracle."""
    operator = pk.operator(model, batches, curvature, parameters=parameters)
    sizes = [shape.numel() for shape in operator.shapes.values()]
    columns = []
    for unit in torch.eye(sum(sizes), dtype=float64):
        named = zip(operator.shapes.items(), unit.split(sizes), strict=True)
        columns.append(flat(operator @ {name: part.view(shape) for (name, shape), part in named}))
    return torch.stack(columns, 1)


class Awkward(nn.Module):
    """Strides, groups, a transposed convolution, norms, tokens, a weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, stride=2, padding=1, groups=2)
        self.norm = nn.BatchNorm1d(4)
        self.up = nn.ConvTranspose1d(4, 4, 2, stride=2, groups=2)
        self.tokens = nn.Linear(4, 3)
        self.layer_norm = nn.LayerNorm(3)
        self.twice = nn.Linear(3, 3, bias=False)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.conv(x)))
        x = self.layer_norm(torch.tanh(self.tokens(self.up(x).transpose(1, 2))))
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        out: Tensor = self.head(x.mean(1))
        return out


def awkward() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """In float64, with a short last batch; the norm has seen something."""
    model = Awkward().double()
    model.norm.running_mean = torch.randn(4, dtype=float64)
    x, y = torch.randn(9, 2, 6, dtype=float64), torch.randint(4, (9,))
    return model, [(x[:6], y[:6]), (x[6:], y[6:])]
