"""The networks themselves; imported when one is built, so listing models needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def initialise(model: nn.Module) -> None:
    """Kaiming-normal weights, zero biases, BatchNorm at one and zero: as in the paper, for every network."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Perceptron(nn.Module):
    """Linear layers with an activation between them; inputs are flattened."""

    def __init__(self, sizes: Sequence[int], activation: str, bias: bool) -> None:
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in pairwise(sizes))
        self.activation = _ACTIVATIONS[activation]()
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc[0](x.flatten(1))
        for layer in self.fc[1:]:
            x = layer(self.activation(x))
        return x


class LeNet(nn.Module):
    """LeNet-5 on 32 × 32 images."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.pad = (32 - size) // 2
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, [self.pad] * 4)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc3(F.relu(self.fc2(x)))
        return logits


class VGG(nn.Module):
    """VGG-11 with a head of two layers of 512 units."""

    def __init__(self, channels: int, classes: int, batch_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
            if width == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(channels, int(width), 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(int(width)))
            layers.append(nn.ReLU())
            channels = int(width)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, classes)
        )
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3×3 convolutions; the shortcut starts after the first pair."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        changes = stride != 1 or inside != width
        self.shortcut = nn.Conv2d(inside, width, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        across = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active)))) + across
        return out


class PreActResNet(nn.Module):
    """Pre-activation ResNet with four stages, for images of about 32 pixels."""

    def __init__(self, channels: int, classes: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        inside = 64
        stages: list[nn.Module] = []
        for stage, count in enumerate(blocks):
            width = 64 * 2**stage
            for i in range(count):
                stages.append(PreActBlock(inside, width, 2 if stage and i == 0 else 1))
                inside = width
        self.blocks = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(inside)
        self.head = nn.Conv2d(inside, classes, 1, bias=False)
        self.head_bn = nn.BatchNorm2d(classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.conv1(x))))
        x = F.adaptive_avg_pool2d(x, 1)
        logits: Tensor = self.head_bn(self.head(x)).flatten(1)
        return logits
