"""Gradients of single examples: the rows of the Jacobian that matrices are made of."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from prunekit.statistics.capture import Use
from prunekit.statistics.contraction import inward, joined, outward
from prunekit.statistics.per_example import example_gradients
from prunekit.statistics.problem import ForwardPass


def example_rows(batch: ForwardPass, column: Tensor, kept: Tensor) -> Tensor:
    """``J_nᵀ s_n`` for each example n and the column's vectors s_n.

    Args:
        batch: With its uses captured.
        column: In the shape of the outputs.
        kept: Flat indices of the weights wanted, parameters one after another.

    Returns:
        ``[examples, len(kept)]`` in float64.
    """
    examples = len(batch.outputs)
    rows = {
        name: torch.cat(list(parts))
        for name, parts in rows_by_parameter(batch, column, batch.backward(column))
    }
    parts = [
        rows[name].double()
        if name in rows
        else torch.zeros(examples, p.numel(), dtype=torch.float64, device=p.device)
        for name, p in batch.problem.parameters.items()
    ]
    return torch.cat(parts, 1)[:, kept]


def rows_by_parameter(
    batch: ForwardPass,
    column: Tensor,
    returned: Mapping[str, Sequence[Tensor]],
    room: int | None = None,
    without: Collection[str] = (),
) -> Iterator[tuple[str, Iterator[Tensor]]]:
    """``J_nᵀ s_n`` by parameter, some examples at a time.

    Args:
        batch: With its uses captured.
        column: In the shape of the outputs.
        returned: What the column gives at each use, from :meth:`ForwardPass.backward`.
        room: Bytes that the rows of some examples may take; ``None`` for all examples at once.
        without: Parameters that are not wanted.

    Yields:
        Names, and their rows ``[examples, weights]``; what is not in use is left out.
    """
    for name, uses in batch.uses.items():
        if name not in without:
            yield name, _in_parts(uses, returned[name], room)
    if batch.others:
        for name, gradients in example_gradients(batch, column).items():
            yield name, iter((gradients.flatten(1),))


def _in_parts(uses: Sequence[Use], returned: Sequence[Tensor], room: int | None) -> Iterator[Tensor]:
    u = joined([inward(use) for use in uses])
    v = joined([outward(use, g) for use, g in zip(uses, returned, strict=True)])
    dtype = torch.promote_types(u.dtype, v.dtype)
    size = u.shape[1] * u.shape[2] * v.shape[2] * dtype.itemsize
    some = len(u) if room is None else max(1, room // size)
    transposed = uses[0].geometry.transposed and not uses[0].geometry.bias
    for start in range(0, len(u), some):
        left, right = v[start : start + some].to(dtype), u[start : start + some].to(dtype)
        products = torch.einsum("ngbt,ngat->ngba", left, right)
        yield (products.transpose(2, 3) if transposed else products).flatten(1)
