"""Per-example products for parameters that no rule covers: embeddings, norms, custom modules.

Exact for any network: one vector-Jacobian product per example and column, batched by ``torch.func`` where
the network allows it and one example at a time where it does not.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from prunekit.network.call import Inputs, call, rows
from prunekit.statistics.problem import ForwardPass


def squared_columns(batch: ForwardPass, columns: Sequence[Tensor]) -> dict[str, Tensor]:
    """``Σ_n Σ_c (J_nᵀ s_nc)²`` for the parameters in ``batch.others``."""
    problem = batch.problem
    chosen = {name: problem.parameters[name] for name in batch.others}
    stacked = torch.stack(list(columns), 1).detach()  # example, column, output
    n = stacked.shape[0]
    each = sum(p.numel() for p in chosen.values()) * stacked.shape[1] * stacked.element_size()
    size = max(1, problem.memory // (4 * each + 1))
    sums = {name: torch.zeros(p.shape, dtype=problem.dtype(p), device=p.device) for name, p in chosen.items()}
    batched = True
    for start in range(0, n, size):
        stop = min(start + size, n)
        inputs, vectors = rows(batch.inputs, start, stop), stacked[start:stop]
        if batched:
            try:
                squares = _batched(batch, chosen, inputs, vectors)
            except Exception:  # whatever vmap cannot do (data-dependent code, missing rules), the loop can
                batched = False
        if not batched:
            squares = _one_by_one(batch, chosen, inputs, vectors)
        for name, value in squares.items():
            sums[name] += value.detach()
    return sums


def example_gradients(batch: ForwardPass, column: Tensor) -> dict[str, Tensor]:
    """``J_nᵀ s_n`` of every example for the parameters in ``batch.others``, ``[N, *parameter]``."""
    problem = batch.problem
    chosen = {name: problem.parameters[name] for name in batch.others}
    by_parameter: dict[str, list[Tensor]] = {name: [] for name in chosen}
    for i in range(len(column)):
        outputs = call(problem.model, rows(batch.inputs, i, i + 1))
        gradients: Sequence[Tensor | None] = [None] * len(chosen)
        if outputs.requires_grad:
            gradients = torch.autograd.grad(
                outputs, list(chosen.values()), column[i : i + 1], allow_unused=True
            )
        for (name, p), g in zip(chosen.items(), gradients, strict=True):
            by_parameter[name].append(torch.zeros_like(p) if g is None else g.to_dense())
    return {name: torch.stack(parts).detach() for name, parts in by_parameter.items()}


def _batched(
    batch: ForwardPass, chosen: dict[str, Tensor], inputs: Inputs, vectors: Tensor
) -> dict[str, Tensor]:
    model, weights = batch.problem.model, {name: p.detach() for name, p in chosen.items()}
    leaves, form = tree_flatten(inputs)
    axes = [0 if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in leaves]

    def squares(example: list[Any], columns: Tensor) -> dict[str, Tensor]:
        alone = [t if axis is None else t.unsqueeze(0) for t, axis in zip(example, axes, strict=True)]
        one = tree_unflatten(alone, form)
        _, back, *_ = vjp(lambda p: call(model, one, p).squeeze(0), weights)
        (gradients,) = vmap(back)(columns)
        return {name: g.to(batch.problem.dtype(g)).square().sum(0) for name, g in gradients.items()}

    with warnings.catch_warnings():
        # Advice to whoever implements operators, not to users of a model that has one of them.
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        totals = vmap(squares, (axes, 0))(leaves, vectors)
    return {name: t.sum(0) for name, t in totals.items()}


def _one_by_one(
    batch: ForwardPass, chosen: dict[str, Tensor], inputs: Inputs, vectors: Tensor
) -> dict[str, Tensor]:
    dtypes = {name: batch.problem.dtype(p) for name, p in chosen.items()}
    sums = {name: torch.zeros(p.shape, dtype=dtypes[name], device=p.device) for name, p in chosen.items()}
    for i in range(vectors.shape[0]):
        outputs = call(batch.problem.model, rows(inputs, i, i + 1))
        if not outputs.requires_grad:  # this example uses none of them
            continue
        for column in vectors[i]:
            gradients = torch.autograd.grad(
                outputs, list(chosen.values()), column.unsqueeze(0), retain_graph=True, allow_unused=True
            )
            for name, g in zip(chosen, gradients, strict=True):
                if g is not None:
                    sums[name] += g.to_dense().to(dtypes[name]).square()
    return sums
