"""Multi-layer perceptron: fully connected layers with an activation between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from prunekit import Model, Options

if TYPE_CHECKING:
    from torch import nn

    from prunekit import DataInfo


class MLPOptions(Options):
    """Options.

    Attributes:
        hidden: Units of each hidden layer.
        activation: Function between the layers.
        bias: Give the layers biases.
    """

    hidden: tuple[Annotated[int, Field(ge=1, le=10_000_000)], ...] = (300, 100)
    activation: Literal["tanh", "relu", "sigmoid", "gelu", "silu"] = "tanh"
    bias: bool = True


class MLP(Model):
    """Fully connected layers ``fc.0``, ``fc.1``, …; Kaiming-normal weights, zero biases, as in the paper.

    784-300-100-10 with tanh is the paper's network for MNIST (266,200 prunable weights).
    """

    name = "mlp"
    Options = MLPOptions

    def build(self, data: DataInfo) -> nn.Module:
        """Size the ends by the data."""
        from prunekit_plugins.models._networks import Perceptron

        sizes = [data.features, *self.options.hidden, data.outputs]
        return Perceptron(sizes, self.options.activation, self.options.bias)
