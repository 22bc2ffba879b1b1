"""Binary cross-entropy of independent outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunekit import DataError, Loss
from prunekit_plugins.losses._columns import apart
from prunekit_plugins.losses._shapes import by_example, like_outputs

if TYPE_CHECKING:
    from torch import Generator, Tensor


class BinaryCrossEntropy(Loss):
    """``binary_cross_entropy_with_logits`` in nats, averaged over examples and outputs.

    Targets are 0/1 or probabilities, in the shape of the logits; axes of length 1 after the first may differ.
    """

    name = "bce_with_logits"
    least = 0.0

    def check(self, targets: Tensor) -> None:
        """Refuse targets that are not probabilities, from 0 to 1."""
        low, high = float(targets.min()), float(targets.max())
        if low < 0 or high > 1:
            raise DataError(
                f"loss 'bce_with_logits': targets are 0, 1 or in between; found {low:g} to {high:g}"
            )

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum of the terms."""
        import torch
        import torch.nn.functional as F

        # In bfloat16 the sum over a batch would keep three digits, in float16 overflow.
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return F.binary_cross_entropy_with_logits(
            outputs, like_outputs(self, outputs, targets).to(outputs.dtype), reduction="sum"
        )

    def normaliser(self, outputs: Tensor, targets: Tensor) -> float:
        """Number of outputs over all examples."""
        return float(outputs.numel())

    def ggn_factor(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """√(σ(1−σ)) on the diagonal."""
        # σ(o)σ(−o) keeps the small factor exact where 1 − σ would cancel.
        root = by_example((outputs.sigmoid() * (-outputs).sigmoid()).sqrt())
        for column in apart(root):
            yield column.view_as(outputs)

    def term_gradients(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """σ(o) − t, one output at a time."""
        for column in apart(by_example(outputs.sigmoid() - like_outputs(self, outputs, targets))):
            yield column.view_as(outputs)

    def term_count(self, outputs: Tensor, targets: Tensor) -> int:
        """Outputs of an example."""
        return outputs[0].numel()

    def draw(self, outputs: Tensor, targets: Tensor, generator: Generator) -> Tensor:
        """σ(o) − y with y drawn from a Bernoulli distribution of mean σ(o)."""
        import torch

        uniform = torch.rand(outputs.shape, generator=generator, dtype=torch.float64, device="cpu").to(
            outputs.device
        )
        # Where σ rounds to 1, σ − 1 is still −σ(−o).
        one = uniform < outputs.double().sigmoid()
        return torch.where(one, -(-outputs).sigmoid(), outputs.sigmoid())

    def errors(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        """Outputs on the wrong side of one half, and all outputs."""
        wrong = (outputs > 0) != (like_outputs(self, outputs, targets) > 0.5)
        return wrong.sum(), outputs.numel()
