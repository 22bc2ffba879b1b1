"""Mean squared error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunekit import Loss

if TYPE_CHECKING:
    from torch import Tensor


class MeanSquaredError(Loss):
    """``torch.nn.functional.mse_loss``: (o − t)², averaged over examples and outputs, without a half."""

    name = "mse"

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum of squares."""
        import torch
        import torch.nn.functional as F

        # In bfloat16 the sum over a batch would keep three digits, in float16 overflow.
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return F.mse_loss(outputs, targets.view_as(outputs), reduction="sum")

    def normaliser(self, outputs: Tensor, targets: Tensor) -> float:
        """Number of outputs over all examples."""
        return float(outputs.numel())

    def ggn_factor(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """√2 times each unit vector: the Hessian is 2·I."""
        import torch

        flat = outputs.flatten(1)
        for k in range(flat.shape[1]):
            column = torch.zeros_like(flat)
            column[:, k] = 2.0**0.5
            yield column.view_as(outputs)
