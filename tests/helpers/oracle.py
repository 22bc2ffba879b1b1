"""What statistics, products and changes of the loss are, by plain autograd of the whole batch, one output at a time.

In float64; right for any network whose outputs are ``[N, C]``, also where examples see each other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

Values = dict[str, Tensor]

TOTALS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda outputs, y: F.cross_entropy(outputs, y, reduction="sum"),
    "mse": lambda outputs, y: F.mse_loss(outputs, y, reduction="sum"),
    "bce_with_logits": lambda outputs, y: F.binary_cross_entropy_with_logits(outputs, y, reduction="sum"),
}


class Oracle:
    """Everything from the Jacobian of all outputs.

    Args:
        model: In eval mode.
        x: Inputs.
        y: Targets.
        names: The parameters that count.
        loss: Of :data:`TOTALS`; a term is an example for cross-entropy, an output for the others.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, names: list[str], loss: str = "cross_entropy"
    ) -> None:
        self.model, self.x, self.y, self.total = model, x, y, TOTALS[loss]
        self.parameters = {name: model.get_parameter(name) for name in names}
        outputs = self.run()
        rows = [self._flat(value) for value in outputs.flatten()]
        self.jacobian = torch.stack(rows).view(*outputs.shape, -1)  # [N, C, weights]
        self.outputs = outputs.detach()
        self.by_output = loss != "cross_entropy"
        self.normaliser = outputs.numel() if self.by_output else len(outputs)

    def run(self) -> Tensor:
        """The outputs, on copies of the buffers: networks that remember begin anew."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        return functional_call(self.model, buffers, (self.x.clone(),))

    def _flat(self, value: Tensor) -> Tensor:
        """The gradient of a number, over all weights."""
        parameters = list(self.parameters.values())
        if not value.requires_grad:
            return torch.zeros(sum(p.numel() for p in parameters), dtype=value.dtype)
        row = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        return torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten()
                for g, p in zip(row, parameters, strict=True)
            ]
        )

    def loss(self) -> Tensor:
        """Of the weights as they are."""
        return self.total(self.run(), self.y) / self.normaliser

    def gradients(self) -> Tensor:
        """Of each term, ``[terms, weights]``."""
        outputs = self.outputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.total(outputs, self.y), outputs)
        each = slope.unsqueeze(2) * self.jacobian
        return each.flatten(0, 1) if self.by_output else each.sum(1)

    def ggn(self) -> Tensor:
        """``[weights, weights]``."""
        inner = torch.stack(
            [
                torch.autograd.functional.hessian(lambda o, y=y: self.total(o[None], y[None]), row)
                for row, y in zip(self.outputs, self.y, strict=True)
            ]
        )
        return torch.einsum("ncw,ncd,ndv->wv", self.jacobian, inner, self.jacobian) / self.normaliser

    def fisher(self) -> Tensor:
        """``[weights, weights]``."""
        return self.gradients().T @ self.gradients() / self.normaliser

    def hessian(self) -> Tensor:
        """``[weights, weights]``, row by row."""
        parameters = list(self.parameters.values())
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            loss = self.loss()
        slopes = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        rows = []
        for slope, parameter in zip(slopes, parameters, strict=True):
            entries = torch.zeros_like(parameter) if slope is None else slope
            rows += [self._flat(value) for value in entries.flatten()]
        return torch.stack(rows).detach()

    def split(self, values: Tensor) -> Values:
        """A vector over all weights, by parameter."""
        sizes = [p.numel() for p in self.parameters.values()]
        return {
            name: part.view(p.shape)
            for (name, p), part in zip(self.parameters.items(), values.split(sizes), strict=True)
        }

    def statistics(self) -> dict[str, Callable[[], Values]]:
        """By prunekit's names."""
        return {
            "gradient": lambda: self.split(self.gradients().sum(0) / self.normaliser),
            "ggn_diagonal": lambda: self.split(self.ggn().diagonal()),
            "empirical_fisher_diagonal": lambda: self.split(self.fisher().diagonal()),
            "hessian_diagonal": lambda: self.split(self.hessian().diagonal()),
        }

    def matrices(self) -> dict[str, Callable[[], Tensor]]:
        """By the names of prunekit's operators."""
        return {"ggn": self.ggn, "hessian": self.hessian, "empirical_fisher": self.fisher}
