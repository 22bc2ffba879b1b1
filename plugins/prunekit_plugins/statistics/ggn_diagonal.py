"""The exact diagonal of the generalised Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunekit.statistics import SquaredColumns

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.statistics import ForwardPass


class GGNDiagonal(SquaredColumns):
    """diag(JᵀHJ), J the Jacobian of the outputs and H the loss's Hessian in them, averaged like the loss.

    For softmax cross-entropy: mean over examples of Σ_c p_c (∂ log p_c / ∂θ)², exact over the classes;
    labels do not enter. Equal to the Hessian's diagonal where the outputs are linear in the weights.
    Reference: Schraudolph (2002), section 3; Laurent et al. (2020), section 3.

    Cost per batch: one backward pass to the activations per column of the factor (classes − 1 for
    cross-entropy), and one product per layer where it is used at one position per example.
    """

    name = "ggn_diagonal"

    def columns(self, batch: ForwardPass) -> tuple[int, Iterator[Tensor]]:
        """The columns of the square root of H."""
        loss, outputs = batch.problem.loss, batch.outputs.detach()
        return loss.ggn_rank(outputs, batch.targets), loss.ggn_factor(outputs, batch.targets)
