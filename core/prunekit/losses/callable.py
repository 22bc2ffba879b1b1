"""A loss from a plain function."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from prunekit.errors import UnsupportedError
from prunekit.losses.base import Loss


class CallableLoss(Loss):
    """A function ``(outputs, targets) -> mean over the batch's examples``, such as ``nn.MSELoss()``.

    Its GGN factor comes from the Hessian of each example's loss in its outputs, by autograd; the function
    must give an example the same loss alone as within a batch.
    """

    name = "callable"

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean, times the number of examples."""
        return self._function(outputs, targets) * len(outputs)

    def normaliser(self, outputs: Tensor, targets: Tensor) -> float:
        """Number of examples."""
        return float(len(outputs))

    def ggn_factor(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """Scaled eigenvectors of each example's Hessian.

        Raises:
            UnsupportedError: If the loss is not convex in the outputs, or not twice differentiable.
        """
        flat = outputs.flatten(1)

        def one(output: Tensor, target: Tensor) -> Tensor:
            return self._function(output.view(1, *outputs.shape[1:]), target.unsqueeze(0))

        try:
            matrices = vmap(jacrev(jacrev(one)))(flat, targets)
        except Exception as error:
            raise UnsupportedError(
                f"no GGN: the loss function has no Hessian in its outputs ({error})"
            ) from error
        values, vectors = torch.linalg.eigh(matrices.to(torch.promote_types(flat.dtype, torch.float32)))
        if bool((values < -1e-4 * values.abs().amax(1, keepdim=True)).any()):
            raise UnsupportedError("no GGN: the loss function is not convex in the outputs")
        scaled = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
        for k in range(flat.shape[1]):
            yield scaled[:, :, k].to(outputs.dtype).view_as(outputs)
