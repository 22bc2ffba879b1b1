"""LeNet-5: a small convolutional network for images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit import Model, SpecError

if TYPE_CHECKING:
    from torch import nn

    from prunekit import DataInfo


class LeNet5(Model):
    """Two 5×5 convolutions (6, 16) with max pooling and layers of 120 and 84 units, ReLU.

    After LeCun et al. (1998), with the modern pooling, activation and full connection between feature maps;
    images smaller than 32 pixels are padded to 32 as there.
    """

    name = "lenet5"

    def build(self, data: DataInfo) -> nn.Module:
        """Size the ends by the data."""
        from prunekit_plugins.models._networks import LeNet

        if len(data.input_shape) != 3 or not 28 <= data.input_shape[-1] <= 32:
            raise SpecError(
                f"model 'lenet5': needs images of 28 to 32 pixels, got inputs of shape {data.input_shape}"
            )
        return LeNet(data.input_shape[0], data.input_shape[-1], data.outputs)
