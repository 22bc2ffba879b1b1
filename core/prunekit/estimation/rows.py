"""Gradients of single examples: the rows of the Jacobian that dense matrices are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunekit.estimation.capture import Use
from prunekit.estimation.contraction import inward, joined, outward
from prunekit.estimation.fallback import example_gradients
from prunekit.estimation.problem import ForwardPass


def example_rows(batch: ForwardPass, column: Tensor, kept: Tensor) -> Tensor:
    """``J_nᵀ s_n`` for each example n and the column's vectors s_n.

    Args:
        batch: With its uses captured.
        column: In the shape of the outputs.
        kept: Flat indices of the weights wanted, parameters one after another.

    Returns:
        ``[examples, len(kept)]`` in float64.
    """
    returned = batch.backward(column)
    found = {name: _by_example(uses, returned[name]) for name, uses in batch.uses.items()}
    if batch.others:
        found |= example_gradients(batch, column)
    examples = len(batch.outputs)
    parts = [
        found[name].reshape(examples, -1).double()
        if name in found
        else torch.zeros(examples, p.numel(), dtype=torch.float64, device=p.device)
        for name, p in batch.problem.parameters.items()
    ]
    return torch.cat(parts, 1)[:, kept]


def _by_example(uses: Sequence[Use], returned: Sequence[Tensor]) -> Tensor:
    u = joined([inward(use) for use in uses])
    v = joined([outward(use, g) for use, g in zip(uses, returned, strict=True)])
    dtype = torch.promote_types(u.dtype, v.dtype)
    products = torch.einsum("ngbt,ngat->ngba", v.to(dtype), u.to(dtype))
    transposed = uses[0].geometry.transposed and not uses[0].geometry.bias
    return products.transpose(2, 3) if transposed else products
