"""Per-example products for parameters that no rule covers: embeddings, norms, custom modules.

Exact for any network: one vector-Jacobian product per example and column. By ``torch.func``, many examples at once,
where the network allows it and the numbers are those of a plain loop; some of torch's batching rules are wrong
(PReLU's in 2.13). Else an example at a time. Where an example by itself does not give what it gives within the batch
(examples that see each other, a batch size that is fixed inside), the vector of one example goes back through the
whole batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from prunekit.network.call import call, count, rows
from prunekit.statistics.problem import ForwardPass
from prunekit.statistics.verification import alike, rounding

Gradients: TypeAlias = list[Tensor | None]
"""One per parameter; ``None`` for those that are not in use."""

Way: TypeAlias = Literal["together", "alone", "within"]
"""How the examples of a batch are gone through."""

_WAYS: WeakKeyDictionary[nn.Module, dict[Any, Way]] = WeakKeyDictionary()
"""What was found to be right for a model, by everything that may decide it."""


def columns_at_once(batch: ForwardPass, columns: int) -> int:
    """For how many columns the products of one example fit the memory."""
    each = _each(batch) + 2 * batch.outputs.nbytes
    return max(1, min(columns, batch.problem.memory // each))


def squared_columns(batch: ForwardPass, columns: Sequence[Tensor]) -> dict[str, Tensor]:
    """``Σ_n Σ_c (J_nᵀ s_nc)²`` for the parameters in ``batch.others``."""
    problem = batch.problem
    chosen = _chosen(batch)
    stacked = torch.stack(list(columns), 1).detach()  # example, column, output
    n = stacked.shape[0]
    size = max(1, problem.memory // (_each(batch) * stacked.shape[1]))
    sums = {name: torch.zeros(p.shape, dtype=problem.dtype(p), device=p.device) for name, p in chosen.items()}
    for start in range(0, n, size):
        for name, value in _squares(batch, chosen, start, stacked[start : start + size]).items():
            sums[name] += value.detach()
    return sums


def example_gradients(batch: ForwardPass, column: Tensor) -> dict[str, Tensor]:
    """``J_nᵀ s_n`` of every example for the parameters in ``batch.others``, ``[N, *parameter]``."""
    chosen = _chosen(batch)
    way = _known_way(batch, chosen, 0, column.unsqueeze(1))
    by_parameter: dict[str, list[Tensor]] = {name: [] for name in chosen}
    for i in range(len(column)):
        (gradients,) = _gradients(batch, chosen, i, column[i : i + 1], within=way == "within")
        for (name, p), g in zip(chosen.items(), gradients, strict=True):
            by_parameter[name].append(torch.zeros_like(p) if g is None else g.to_dense())
    return {name: torch.stack(parts).detach() for name, parts in by_parameter.items()}


def _chosen(batch: ForwardPass) -> dict[str, Tensor]:
    return {name: batch.problem.parameters[name] for name in batch.others}


def _each(batch: ForwardPass) -> int:
    """Bytes for one example and column: its gradients, and what comes back through the network on the way."""
    weights = sum(batch.problem.parameters[name].numel() for name in batch.others)
    return 4 * weights * batch.outputs.element_size() + batch.bytes_per_example // 4 + 1


def _squares(
    batch: ForwardPass, chosen: Mapping[str, Tensor], start: int, vectors: Tensor
) -> dict[str, Tensor]:
    """The sums over some examples, from ``start`` on."""
    way = _known_way(batch, chosen, start, vectors)
    if way == "together":
        # Another batch may hold what the one that was looked at did not: a branch that vmap cannot take.
        squares = _together(batch, chosen, start, vectors)
        if squares is not None:
            return {name: t.sum(0) for name, t in squares.items()}
    return _one_by_one(batch, chosen, start, vectors, way == "within")


def _one_by_one(
    batch: ForwardPass, chosen: Mapping[str, Tensor], start: int, vectors: Tensor, within: bool
) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    for i in range(len(vectors)):
        for name, value in _squares_of(batch, chosen, start + i, vectors[i], within).items():
            sums[name] = sums[name] + value if name in sums else value
    return sums


def _known_way(batch: ForwardPass, chosen: Mapping[str, Tensor], start: int, vectors: Tensor) -> Way:
    """The way for so many examples and columns of such inputs, tried out once in the model's life."""
    shapes = [(t.shape[1:], t.dtype) for t in tree_leaves(batch.inputs) if isinstance(t, Tensor)]
    key = repr((shapes, tuple(chosen), vectors.shape))
    known = _WAYS.setdefault(batch.problem.model, {})
    if key not in known:
        known[key] = _find_way(batch, chosen, start, vectors)
    return known[key]


def _find_way(batch: ForwardPass, chosen: Mapping[str, Tensor], start: int, vectors: Tensor) -> Way:
    """Compare the first and the last example, each way with the slower one after it."""
    ends = sorted({0, len(vectors) - 1})
    for i in ends:
        column = vectors[i, :1]
        (within,) = _within(batch, chosen, start + i, column)
        alone = _alone(batch, chosen, start + i, column)
        if alone is None or not _agree(next(alone), within):
            return "within"
    squares = _together(batch, chosen, start, vectors)
    if squares is None:
        return "alone"
    for i in ends:
        one = _squares_of(batch, chosen, start + i, vectors[i], within=False)
        if not _agree([squares[name][i] for name in chosen], [one.get(name) for name in chosen]):
            return "alone"
    return "together"


def _agree(some: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> bool:
    """Whether two lists of tensors are the same to rounding; ``None`` stands for zeros."""
    pairs = [
        (
            t.new_zeros(()) if a is None else a.detach().to_dense(),
            t.new_zeros(()) if b is None else b.detach().to_dense(),
        )
        for a, b in zip(some, others, strict=True)
        if (t := b if a is None else a) is not None
    ]
    sizes = [float(torch.maximum(a.abs(), b.abs()).nan_to_num(0.0, 0.0).max()) for a, b in pairs]
    for (a, b), size in zip(pairs, sizes, strict=True):
        # What cancels to nothing is the rounding of the largest.
        tolerance = rounding(a.dtype) * size + 100 * torch.finfo(a.dtype).eps * max(sizes)
        if not bool(((a - b).nan_to_num(0.0).abs() <= tolerance).all()):
            return False
    return True


def _squares_of(
    batch: ForwardPass, chosen: Mapping[str, Tensor], index: int, columns: Tensor, within: bool
) -> dict[str, Tensor]:
    """One example's sums of squares over columns."""
    dtypes = {name: batch.problem.dtype(p) for name, p in chosen.items()}
    sums: dict[str, Tensor] = {}
    for gradients in _gradients(batch, chosen, index, columns, within):
        for name, g in zip(chosen, gradients, strict=True):
            if g is not None:
                square = g.to_dense().to(dtypes[name]).square()
                sums[name] = sums[name] + square if name in sums else square
    return sums


def _gradients(
    batch: ForwardPass, chosen: Mapping[str, Tensor], index: int, columns: Tensor, within: bool
) -> Iterator[Gradients]:
    """One example's gradients, column by column: by itself, where that gives what it gives within the batch."""
    alone = None if within else _alone(batch, chosen, index, columns)
    return _within(batch, chosen, index, columns) if alone is None else alone


def _alone(
    batch: ForwardPass, chosen: Mapping[str, Tensor], index: int, columns: Tensor
) -> Iterator[Gradients] | None:
    """With the example by itself; ``None`` if the network then gives something else, or nothing."""
    expected = batch.outputs[index : index + 1]
    if count(batch.inputs) != len(batch.outputs):
        return None
    try:
        outputs = call(batch.problem.model, rows(batch.inputs, index, index + 1))
    except Exception:  # a batch size that is fixed inside, an axis that was squeezed away
        return None
    if outputs.numel() != expected.numel():
        return None
    outputs = outputs.reshape(expected.shape)
    if not alike(outputs, expected, batch.outputs):
        return None
    return _sent_back(outputs, chosen, (column.unsqueeze(0) for column in columns))


def _within(
    batch: ForwardPass, chosen: Mapping[str, Tensor], index: int, columns: Tensor
) -> Iterator[Gradients]:
    """Through the whole batch, with zeros for all other examples."""

    def padded() -> Iterator[Tensor]:
        for column in columns:
            whole = torch.zeros_like(batch.outputs)
            whole[index] = column
            yield whole

    return _sent_back(batch.outputs, chosen, padded())


def _sent_back(
    outputs: Tensor, chosen: Mapping[str, Tensor], columns: Iterator[Tensor]
) -> Iterator[Gradients]:
    for column in columns:
        if outputs.requires_grad:
            yield list(
                torch.autograd.grad(
                    outputs, list(chosen.values()), column, retain_graph=True, allow_unused=True
                )
            )
        else:  # this example uses none of them
            yield [None] * len(chosen)


def _together(
    batch: ForwardPass, chosen: Mapping[str, Tensor], start: int, vectors: Tensor
) -> dict[str, Tensor] | None:
    """Squares of every example, ``[examples, *parameter]``; ``None`` where vmap cannot, or gives other outputs."""
    stop = start + len(vectors)
    if count(batch.inputs) != len(batch.outputs):
        return None
    model, weights = batch.problem.model, {name: p.detach() for name, p in chosen.items()}
    leaves, form = tree_flatten(rows(batch.inputs, start, stop))
    axes = [0 if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in leaves]
    expected = batch.outputs[start:stop]

    def squares(example: list[Any], columns: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        alone = [t if axis is None else t.unsqueeze(0) for t, axis in zip(example, axes, strict=True)]
        one = tree_unflatten(alone, form)
        outputs, back, *_ = vjp(lambda p: call(model, one, p).reshape(expected.shape[1:]), weights)
        (gradients,) = vmap(back)(columns)
        summed = {name: g.to(batch.problem.dtype(g)).square().sum(0) for name, g in gradients.items()}
        return summed, outputs

    with warnings.catch_warnings():
        # Advice to whoever implements operators, not to users of a model that has one of them.
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        try:
            totals, outputs = vmap(squares, (axes, 0))(leaves, vectors)
        except Exception:  # whatever vmap cannot do (data-dependent code, missing rules), the loop can
            return None
    return totals if alike(outputs, expected, batch.outputs) else None
