"""Inverses of many symmetric positive definite matrices at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_PIECES = 8  # for each thread, so that none waits long for another


def inverse(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Invert by Cholesky factorisation.

    On CPU torch hands a batch to LAPACK matrix by matrix, and matrices of a few hundred rows keep one core busy at
    best: here every core has matrices of its own, half as long for two cores.

    Args:
        matrices: ``[R, k, k]``, symmetric.

    Returns:
        The inverses, and which matrices are positive definite ``[R]``; the others' inverses have no meaning.
    """
    out = torch.empty_like(matrices, memory_format=torch.contiguous_format)
    failed = torch.zeros(len(matrices), dtype=torch.int32, device=matrices.device)
    threads = min(torch.get_num_threads(), len(matrices))
    if matrices.device.type != "cpu" or threads < 2:
        _invert(matrices, out, failed)
        return out, failed == 0
    size = -(-len(matrices) // (_PIECES * threads))
    parts = [slice(start, start + size) for start in range(0, len(matrices), size)]
    try:
        with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
            list(pool.map(lambda part: _invert(matrices[part], out[part], failed[part]), parts))
    finally:
        torch.set_num_threads(torch.get_num_threads())  # this thread's, and now again that of threads to come
    return out, failed == 0


def _invert(matrices: Tensor, out: Tensor, failed: Tensor) -> None:
    factor, info = torch.linalg.cholesky_ex(matrices)
    failed.copy_(info)
    if bool(info.any()):
        factor[info > 0] = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
    torch.cholesky_inverse(factor, out=out)


_SMALL = 128  # below which halves are not worth a call


def triangular_inverse(lower: Tensor) -> Tensor:
    """The inverses of lower triangular matrices ``[G, k, k]``, by halves: a third of the operations of solving for all.

    Examples:
        >>> triangular_inverse(torch.tensor([[[2.0, 0.0], [2.0, 1.0]]]))
        tensor([[[ 0.5000,  0.0000],
                 [-1.0000,  1.0000]]])
    """
    out = torch.zeros_like(lower)
    _triangular(lower, out)
    return out


def _triangular(lower: Tensor, out: Tensor) -> None:
    size = lower.shape[1]
    if size <= _SMALL:
        unit = torch.eye(size, dtype=lower.dtype, device=lower.device)
        out.copy_(torch.linalg.solve_triangular(lower, unit.expand_as(lower), upper=False))
        return
    half = size // 2
    first, second = slice(None, half), slice(half, None)
    _triangular(lower[:, first, first], out[:, first, first])
    _triangular(lower[:, second, second], out[:, second, second])
    below = torch.bmm(lower[:, second, first], out[:, first, first])
    out[:, second, first] = torch.bmm(out[:, second, second], below).neg_()
