"""Layers' outputs made up for by least squares, and how far a pruned layer is from that."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunekit_plugins._curvature.blocks import not_definite
from prunekit_plugins._curvature.layer_gram import LayerBlocks, Shared
from prunekit_plugins._linalg.constrained import adjusted
from prunekit_plugins._linalg.inversion import inverse

Tensors = Mapping[str, Tensor]

_PIECE = 128 << 20
_MATRICES = 6
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
    left = torch.cat([m.flatten() for m in masks.values()])
    values = torch.cat([w.flatten().double() for w in weights.values()])
    found = values.clone()
    for chunk in blocks.chunks():
        gone = chunk.there & ~left[chunk.index]
        part = adjusted(chunk.inverse, chunk.at(values), gone)
        found[chunk.index[chunk.there]] = part[chunk.there]
    parts = torch.split(found, [w.numel() for w in weights.values()])
    return {n: p.view(w.shape).to(w.dtype) for (n, w), p in zip(weights.items(), parts, strict=True)}


def least_squares(blocks: LayerBlocks, weights: Tensors, masks: Tensors) -> dict[str, Tensor]:
    """The same with hardly any damping of the layer's own, where the blocks have been given more.

    Args:
        blocks: Of the statistic ``inverse_layer``, over kept or all inputs.
        weights: Before; zero where they were pruned already.
        masks: What is kept.

    Returns:
        New values in the weights' dtypes.
    """
    left = torch.cat([m.flatten() for m in masks.values()])
    values = torch.cat([w.flatten().double() for w in weights.values()])
    found, start = {}, 0
    for name, w in weights.items():
        family = blocks.family(name)
        best = _least_squares(family, values, left, blocks.damping + _LITTLE * family.mean, blocks.memory)
        found[name] = best[start : start + w.numel()].view(w.shape).to(w.dtype)
        start += w.numel()
    return found


def layer_errors(
    blocks: LayerBlocks, before: Tensors, after: Tensors, masks: Tensors
) -> dict[str, tuple[float, float]]:
    """Each layer's error ``Σ_r Δ_rᵀ H Δ_r``, and the least one that its mask allows; both without damping.

    Their relative difference is the gap of an update to least squares.

    Args:
        blocks: Of the statistic ``inverse_layer``, at the weights before.
        before: By parameter; zero where pruned already.
        after: By parameter; what stands where a weight goes counts as zero.
        masks: What is kept after.

    Returns:
        By parameter, both in squared units of the layer's outputs per loss normaliser.
    """
    old = torch.cat([w.flatten().double() for w in before.values()])
    left = torch.cat([m.flatten() for m in masks.values()])
    new = torch.cat([w.flatten().double() for w in after.values()]).masked_fill(~left, 0.0)
    found = {}
    for name in before:
        family = blocks.family(name)
        # Above the rounding of a factorisation, so that a singular problem has a solution: one of the best.
        rounding = family.inputs**2 * torch.finfo(torch.float64).eps * family.mean
        best = _least_squares(family, old, left, rounding, blocks.memory)
        found[name] = family.curved(new - old), family.curved(best - old)
    return found


def _least_squares(family: Shared, values: Tensor, left: Tensor, damping: float, memory: int) -> Tensor:
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
