"""Layers' outputs made up for by least squares."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit import Tensors
from prunekit.masks import FlatIndex
from prunekit_plugins._curvature.block_families import packed
from prunekit_plugins._curvature.blocks import not_definite
from prunekit_plugins._curvature.grams import LayerGrams
from prunekit_plugins._curvature.layer_gram import LayerBlocks, LayerGram
from prunekit_plugins._linalg.constrained import adjusted
from prunekit_plugins._linalg.inversion import inverse

_PIECE = 128 << 20
_MATRICES = 6  # of one layer in work
_LITTLE = 1e-8  # of the mean diagonal, as criterion obc has it: the least error to as many digits, or nearly


def refitted(blocks: LayerBlocks, weights: Tensors, masks: Tensors) -> dict[str, Tensor]:
    """The values with the least damped error for their masks, row by row.

    Args:
        blocks: Of the statistic ``inverse_layer``.
        weights: Before; zero where they were pruned already.
        masks: What is kept.

    Returns:
        New values in the weights' dtypes.
    """
    index = FlatIndex.of(weights)
    left, values = index.flat(masks), index.flat(weights, torch.float64)
    fitted = values.clone()
    for chunk in blocks.chunks():
        gone = chunk.there & ~left[chunk.index]
        part = adjusted(chunk.inverse, chunk.at(values), gone)
        fitted[chunk.index[chunk.there]] = part[chunk.there]
    return {name: v.to(weights[name].dtype) for name, v in index.split(fitted).items()}


def least_squares(
    grams: LayerGrams, weights: Tensors, masks: Tensors, memory: int = _PIECE
) -> dict[str, Tensor]:
    """The same from the moments themselves, with hardly any damping beside :attr:`LayerGrams.damping`.

    Args:
        grams: Of the statistic ``input_gram``, in double precision.
        weights: Before; zero where they were pruned already.
        masks: What is kept.
        memory: Bytes for the matrices of some rows at a time.

    Returns:
        New values in the weights' dtypes.
    """
    best = {}
    for name, w in weights.items():
        gram = grams.grams[name]
        everything = torch.ones(gram.rows.count, gram.rows.inputs, dtype=torch.bool, device=w.device)
        index = gram.rows.of(torch.arange(w.numel(), device=w.device))
        family = LayerGram(name, *packed(index, everything), gram, _LITTLE, 0)
        damping = grams.damping + family.own
        values, left = w.double().reshape(-1), masks[name].reshape(-1)
        best[name] = solve_layer(family, values, left, damping, memory).view(w.shape).to(w.dtype)
    return best


def conjugate_gradients(
    grams: LayerGrams, weights: Tensors, values: Tensors, masks: Tensors, relative: float, steps: int = 10
) -> dict[str, Tensor]:
    """Values on the way to the least damped error for their masks, after a few steps of conjugate gradients.

    All rows take their steps together, each with its own lengths, and the diagonal of H as preconditioner. The error falls
    with every step. Reference: Meng et al. (2024), section 3.3.

    Args:
        grams: Of the statistic ``input_gram``.
        weights: Whose outputs are to be met; zero where they were pruned already.
        values: Where to begin.
        masks: What is kept.
        relative: Damping in units of H's mean diagonal, beside :attr:`LayerGrams.damping`.
        steps: How many.

    Returns:
        New values in the weights' dtypes.
    """
    fitted = {}
    for name, w in weights.items():
        gram = grams.grams[name]
        moments = gram.moments
        matrix = moments.damped(grams.damping + relative * moments.mean)
        wanted = gram.of(w).mT.to(matrix)
        kept = gram.of(masks[name]).mT
        solution = gram.of(values[name]).mT.to(matrix) * kept
        solution = descended(matrix, torch.bmm(matrix, wanted), solution, kept, steps)
        fitted[name] = gram.back(solution.mT).to(w.dtype)
    return fitted


def descended(matrix: Tensor, right: Tensor, solution: Tensor, kept: Tensor, steps: int) -> Tensor:
    """Conjugate gradients for ``A[K, K] x_K = b_K`` in each column, the others zero.

    Args:
        matrix: A ``[groups, inputs, inputs]``, positive definite.
        right: b ``[groups, inputs, rows]``.
        solution: Where to begin, zero where nothing is kept.
        kept: K, bool.
        steps: How many.
    """
    scale = matrix.diagonal(dim1=1, dim2=2).unsqueeze(2).reciprocal()
    residual = (right - torch.bmm(matrix, solution)).mul_(kept)
    direction, along = torch.zeros_like(residual), None
    for _ in range(steps):
        downhill = residual * scale
        before, along = along, (residual * downhill).sum(1, keepdim=True)
        if before is None:
            direction = downhill
        else:
            direction = direction.mul_(_ratio(along, before)).add_(downhill)
        moved = torch.bmm(matrix, direction).mul_(kept)
        length = _ratio(along, (direction * moved).sum(1, keepdim=True))
        solution = torch.addcmul(solution, direction, length)
        residual.addcmul_(moved, length, value=-1)
    return solution


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """A / b, zero where b is: there is nothing left to do."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)


def solve_layer(family: LayerGram, values: Tensor, left: Tensor, damping: float, memory: int) -> Tensor:
    """Over all weights, those of other layers unchanged: solve ``A[K,K] ŵ_K = (A w)_K`` in each row, A = H + αI."""
    out = values.clone()
    for start, stop in family.pieces(min(_PIECE, memory // _MATRICES)):
        k = family.sizes[start]
        index, there = family.index[start:stop, :k], family.there[start:stop, :k]
        kept = there & left[index]
        matrix = family.damped(start, stop, damping - family.own)
        right = torch.bmm(matrix, family.at(values, start, stop).unsqueeze(2)).squeeze(2)
        matrix.masked_fill_(~(kept.unsqueeze(2) & kept.unsqueeze(1)), 0.0)
        matrix.diagonal(dim1=1, dim2=2).add_((~kept).to(matrix))
        inverted, definite = inverse(matrix)
        if not bool(definite.all()):
            bad = matrix[int((~definite).nonzero()[0])]
            raise not_definite("least squares", family.layer, bad, damping)
        solved = torch.bmm(inverted, right.masked_fill(~kept, 0.0).unsqueeze(2)).squeeze(2)
        out[index[there]] = torch.where(kept, solved, 0.0)[there]
    return out
