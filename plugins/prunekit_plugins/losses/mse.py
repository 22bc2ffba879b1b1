"""Mean squared error between outputs and targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunekit import Loss
from prunekit_plugins.losses._columns import apart
from prunekit_plugins.losses._shapes import by_example, like_outputs

if TYPE_CHECKING:
    from torch import Generator, Tensor


class MeanSquaredError(Loss):
    """``torch.nn.functional.mse_loss``: (o − t)², averaged over examples and outputs, without a half.

    Targets are numbers in the shape of the outputs; axes of length 1 after the first may differ.
    """

    name = "mse"
    least = 0.0

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum of the squared differences between outputs and targets."""
        import torch
        import torch.nn.functional as F

        # In bfloat16 the sum over a batch would keep three digits, in float16 overflow.
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return F.mse_loss(outputs, like_outputs(self, outputs, targets), reduction="sum")

    def normaliser(self, outputs: Tensor, targets: Tensor) -> float:
        """Number of outputs over all examples."""
        return float(outputs.numel())

    def ggn_factor(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """√2 times each unit vector: the Hessian is 2·I."""
        import torch

        for column in apart(torch.full_like(by_example(outputs), 2.0**0.5)):
            yield column.view_as(outputs)

    def term_gradients(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """2(o − t), one output at a time."""
        for column in apart(2 * by_example(outputs - like_outputs(self, outputs, targets))):
            yield column.view_as(outputs)

    def term_count(self, outputs: Tensor, targets: Tensor) -> int:
        """Outputs of an example."""
        return outputs[0].numel()

    def draw(self, outputs: Tensor, targets: Tensor, generator: Generator) -> Tensor:
        """√2 ε: the loss is minus the logarithm of a normal density of variance ½, up to a constant."""
        import torch

        # By the distribution function, number by number: torch.randn draws a few numbers in another way than many, so
        # that they would depend on how batches are cut.
        uniform = torch.rand(outputs.shape, generator=generator, dtype=torch.float64, device="cpu")
        noise: Tensor = torch.special.ndtri(uniform.clamp_(min=2.0**-54))
        return noise.mul_(2.0**0.5).to(outputs)
