"""A network whose tensors have names that torch allows and a path or a C string would not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SLASHES, ZERO, PERCENT, LONG = "a//b", "nul\0", "50%2F", "λ" * 1000


class Odd(nn.Module):
    """Takes two inputs and gives one output."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in ((SLASHES, (5, 2)), ("w", (5, 5)), (ZERO, (5,)), (PERCENT, (5,)), (LONG, (5,))):
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))
        self.add_module("w/x", nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        """One number an example."""
        hidden = torch.tanh(x @ getattr(self, SLASHES).T) @ self.w
        shift = getattr(self, ZERO) + getattr(self, PERCENT) * getattr(self, LONG)
        return getattr(self, "w/x")(torch.tanh(hidden + shift))
