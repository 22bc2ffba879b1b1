"""Pre-activation ResNet-18 for small images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit import Model, SpecError

if TYPE_CHECKING:
    from torch import nn

    from prunekit import DataInfo


class PreActResNet18(Model):
    """The paper's PreActResNet18: 2-2-2-2 blocks of 64 to 512 channels, 1×1 shortcuts without BatchNorm.

    The classifier is a 1×1 convolution without bias followed by BatchNorm; 11,164,352 prunable weights on
    CIFAR-10.
    """

    name = "preact_resnet18"

    def build(self, data: DataInfo) -> nn.Module:
        """Size the ends by the data."""
        from prunekit_plugins.models._networks import PreActResNet

        if len(data.input_shape) != 3:
            raise SpecError(f"model 'preact_resnet18': needs images, got inputs of shape {data.input_shape}")
        return PreActResNet(data.input_shape[0], data.outputs, (2, 2, 2, 2))
