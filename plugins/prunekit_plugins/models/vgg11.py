"""VGG-11 for small images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit import Model, Options, SpecError

if TYPE_CHECKING:
    from torch import nn

    from prunekit import DataInfo


class VGG11Options(Options):
    """Options.

    Attributes:
        batch_norm: Put BatchNorm after every convolution; the paper's network has none.
    """

    batch_norm: bool = False


class VGG11(Model):
    """The paper's VGG11: eight 3×3 convolutions, two layers of 512 units and the classes.

    Convolutions 64-M-128-M-256-256-M-512-512-M-512-512-M, ReLU, biases, Kaiming-normal
    weights; 9,747,136 prunable weights on CIFAR-10.
    """

    name = "vgg11"
    Options = VGG11Options

    def build(self, data: DataInfo) -> nn.Module:
        """Size the ends by the data."""
        from prunekit_plugins.models._networks import VGG

        if len(data.input_shape) != 3 or data.input_shape[1:] != (32, 32):
            raise SpecError(
                f"model 'vgg11': needs images of 32 × 32 pixels, got inputs of shape {data.input_shape}"
            )
        return VGG(data.input_shape[0], data.outputs, self.options.batch_norm)
