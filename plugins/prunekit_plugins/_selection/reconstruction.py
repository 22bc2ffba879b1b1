"""Layers' outputs made up for by least squares."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit import Tensors
from prunekit.masks import FlatIndex
from prunekit_plugins._curvature.blocks import not_definite
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


def least_squares(blocks: LayerBlocks, weights: Tensors, masks: Tensors) -> dict[str, Tensor]:
    """The same with hardly any damping of the layer's own, where the blocks have been given more.

    Args:
        blocks: Of the statistic ``inverse_layer``, over kept or all inputs.
        weights: Before; zero where they were pruned already.
        masks: What is kept.

    Returns:
        New values in the weights' dtypes.
    """
    index = FlatIndex.of(weights)
    left, values = index.flat(masks), index.flat(weights, torch.float64)
    best = {}
    for layer in index.layers:
        family, w = blocks.family(layer.name), weights[layer.name]
        damping = blocks.damping + _LITTLE * family.mean
        fitted = solve_layer(family, values, left, damping, blocks.memory)
        best[layer.name] = fitted[layer.part].view(w.shape).to(w.dtype)
    return best


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
