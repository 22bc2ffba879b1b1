"""The networks that are timed, with random inputs, and one bare gradient of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit.masks.prunable import prunable_parameters
from prunekit_plugins.models.mlp import MLP
from prunekit_plugins.models.preact_resnet18 import PreActResNet18
from prunekit_plugins.models.vgg11 import VGG11


@dataclass(frozen=True)
class Case:
    """A network in eval mode with one batch.

    Attributes:
        model: Weights as initialised.
        x: Inputs.
        y: Labels.
    """

    model: nn.Module
    x: Tensor
    y: Tensor

    def to(self, device: torch.device) -> Case:
        """The same there; the network is moved, not copied."""
        return Case(self.model.to(device), self.x.to(device), self.y.to(device))

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        return [(self.x, self.y)]

    @property
    def weights(self) -> dict[str, Tensor]:
        """What every method is asked for: prunekit's default, the weights of Linear and Conv layers."""
        return prunable_parameters(self.model)

    def gradient(self) -> None:
        """The yardstick: bare forward and backward of the batch."""
        self.model.zero_grad()
        nn.functional.cross_entropy(self.model(self.x), self.y).backward()


def _case(model: pk.Model, shape: tuple[int, ...], examples: int, classes: int) -> Case:
    torch.manual_seed(0)
    network = model.build(pk.DataInfo(shape, classes, "classification")).eval()
    return Case(network, torch.randn(examples, *shape), torch.randint(classes, (examples,)))


def mlp(examples: int = 1000, classes: int = 10, hidden: tuple[int, ...] = (300, 100)) -> Case:
    return _case(MLP(hidden=hidden), (784,), examples, classes)


def vgg11(examples: int = 16) -> Case:
    return _case(VGG11(), (3, 32, 32), examples, 10)


def preact_resnet18(examples: int = 8) -> Case:
    return _case(PreActResNet18(), (3, 32, 32), examples, 10)
