"""The gradient of the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit import Estimator

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.statistics import ForwardPass, Problem


class Gradient(Estimator):
    """∂L/∂θ, L the mean loss over all examples: sums of terms and normalisers over batches, one division.

    Cost: one backward pass per batch.
    """

    name = "gradient"

    def start(self, problem: Problem) -> None:
        """Keep the problem, and begin with empty sums of the batches' gradients."""
        self._problem = problem
        self._sums: dict[str, Tensor] = {}
        self._scale = 0.0

    def add(self, batch: ForwardPass) -> None:
        """Add the gradient of the batch's total loss."""
        import torch

        parameters = self._problem.parameters
        # In units of the first batch, whose mean then needs no pass over the weights afterwards.
        self._scale = self._scale or batch.normaliser or 1.0
        gradients = torch.autograd.grad(
            batch.total,
            list(parameters.values()),
            torch.full_like(batch.total, 1 / self._scale),
            retain_graph=batch.needed_again,
            allow_unused=True,
        )
        for (name, parameter), g in zip(parameters.items(), gradients, strict=True):
            if g is None:
                continue
            g = g.to_dense().to(self._problem.dtype(parameter))
            # Not in place: autograd may return one tensor for two parameters, or an expanded one.
            self._sums[name] = self._sums[name] + g if name in self._sums else g

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Divide by the normaliser; zeros for a parameter that the loss does not depend on."""
        import torch

        factor = self._scale / normaliser
        return {
            name: (self._sums[name] * factor if factor != 1 else self._sums[name].contiguous())
            if name in self._sums
            else torch.zeros_like(p, dtype=self._problem.dtype(p), requires_grad=False)
            for name, p in self._problem.parameters.items()
        }
