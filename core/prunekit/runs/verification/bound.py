"""The bound of a certificate, evaluated apart from what found it; ``docs/verify.md`` prints this module in full."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def lower_bound(
    batches: Sequence[tuple[Callable[[Weights], Tensor], Tensor]],  # from weights to outputs [N, …]; targets
    total: Callable[[Tensor, Tensor], Tensor],  # from outputs and targets to the sum of the loss's terms
    columns: Callable[[Tensor, Tensor], Iterable[Tensor]],  # S_c like the outputs; Σ S_c S_cᵀ: the curvature
    normaliser: float,  # what sums over all examples are divided by
    weights: Weights,  # θ
    kept: Weights,  # bool: where weights may be other than zero
    nu: Tensor,  # ν, float64 [example, column]
    budget: int,  # k
    damping: float,  # α
    gradient: float = 1.0,  # 0 for a model without g
) -> list[float]:
    """Terms of a sum below P(w) = gᵀ(w − θ) + ½‖A(w − θ)‖² + α/2·‖w − θ‖² for every w with k non-zeros."""
    pulled, slope = ({n: torch.zeros_like(w).double() for n, w in weights.items()} for _ in "Ag")  # Aᵀν, g
    norm = float(nu.square().sum())
    for forward, targets in batches:
        outputs, back = torch.func.vjp(forward, weights)[:2]
        rows, nu = nu[: len(outputs)].T, nu[len(outputs) :]  # [column, N]
        steepest = torch.func.grad(total)(outputs, targets) * (gradient / normaliser)
        weighed = torch.zeros_like(outputs, dtype=torch.float64)
        for column, row in zip(columns(outputs.detach(), targets), rows, strict=False):
            weighed += column * row.view(-1, *[1] * (outputs.ndim - 1)) / normaliser**0.5
        for sums, vector in ((pulled, weighed), (slope, steepest)):
            for name, part in back(vector.to(outputs.dtype))[0].items():
                sums[name] += part
    theta, a, g = (torch.cat([t[n][kept[n]].double() for n in weights]) for t in (weights, pulled, slope))
    largest = (a + g - damping * theta).square().sort(descending=True).values[:budget]
    halves = -norm, -float(largest.sum()) / damping, damping * float(theta @ theta)
    return [-float(theta @ a), -float(theta @ g), *(half / 2 for half in halves)]
