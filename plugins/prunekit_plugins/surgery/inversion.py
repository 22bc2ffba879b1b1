"""Inverses of many symmetric positive definite matrices at once.

A batch goes through LAPACK one matrix after another, at a few GFLOP/s for matrices of a hundred rows. Here nearly
all work is batched matrix products: halves of a matrix are inverted in turn, by way of the Schur complement, and
the smallest pieces by sweeps over all matrices together.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALL = 16
_TOGETHER = 1 << 20  # bytes of small matrices that are swept at once: what a cache holds


def inverse(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Invert.

    Args:
        matrices: ``[R, k, k]``, symmetric.

    Returns:
        The inverses, symmetric to the last bit, and the smallest pivot of each matrix ``[R]``: positive where,
        and only where, the matrix is positive definite (to rounding); else the inverse has no meaning.
    """
    if not len(matrices) or not matrices.shape[1]:
        return matrices.clone(), matrices.new_ones(len(matrices))
    found, pivots = _by_halves(matrices)
    return (found + found.transpose(1, 2)).mul_(0.5), pivots


def _by_halves(m: Tensor) -> tuple[Tensor, Tensor]:
    n = m.shape[1]
    if n <= _SMALL:
        return _swept(m)
    h = -(-n // 2 // _SMALL) * _SMALL
    lower = m[:, h:, :h]
    first, pivots = _by_halves(m[:, :h, :h])
    folded = torch.bmm(lower, first)
    schur = torch.baddbmm(m[:, h:, h:], folded, lower.transpose(1, 2), alpha=-1)
    second, more = _by_halves(schur)
    coupled = torch.bmm(second, folded)
    out = torch.empty_like(m, memory_format=torch.contiguous_format)
    torch.baddbmm(first, folded.transpose(1, 2), coupled, out=out[:, :h, :h])
    out[:, h:, h:] = second
    torch.neg(coupled, out=out[:, h:, :h])
    out[:, :h, h:] = out[:, h:, :h].transpose(1, 2)
    return out, torch.minimum(pivots, more)


def _swept(m: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss-Jordan on the diagonal, the batch innermost in memory."""
    n = m.shape[1]
    out, pivots = torch.empty_like(m, memory_format=torch.contiguous_format), m.new_empty(len(m))
    rows = max(1, _TOGETHER // (n * n * m.element_size())) if m.device.type == "cpu" else len(m)
    for start in range(0, len(m), rows):
        work = m[start : start + rows].permute(1, 2, 0).contiguous()
        least = torch.full_like(work[0, 0], torch.inf)
        for p in range(n):
            pivot, column = work[p, p].clone(), work[:, p].clone()
            torch.minimum(least, pivot, out=least)
            scaled = column / pivot
            work.addcmul_(column.unsqueeze(1), scaled.unsqueeze(0), value=-1)
            work[p] = scaled
            work[:, p] = scaled
            work[p, p] = -1 / pivot
        out[start : start + rows] = work.neg_().permute(2, 0, 1)
        pivots[start : start + rows] = least
    return out, pivots
