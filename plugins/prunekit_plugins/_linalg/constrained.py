"""The best values of what is left, once it is known which weights go."""

from __future__ import annotations

import torch
from torch import Tensor


def adjusted(inverse: Tensor, values: Tensor, gone: Tensor) -> Tensor:
    """Minimise the quadratic model of each block with some weights at zero: ``c − H⁻¹_{:,S} ([H⁻¹]_SS)⁻¹ c_S``.

    Args:
        inverse: H⁻¹ ``[R, k, k]``.
        values: c, where the model has its minimum ``[R, k]``.
        gone: S ``[R, k]``.

    Returns:
        ``[R, k]``; what stands at S is zero to rounding.
    """
    most = int(gone.sum(1).max()) if len(gone) else 0
    if not most:
        return values
    # S first, in each block; blocks with fewer are filled up with the identity.
    order = gone.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    filled = gone.gather(1, order)
    columns = inverse.gather(1, order.unsqueeze(2).expand(-1, -1, inverse.shape[2]))
    square = columns.gather(2, order.unsqueeze(1).expand(-1, most, -1))
    square = torch.where(filled.unsqueeze(2) & filled.unsqueeze(1), square, 0.0)
    square.diagonal(dim1=1, dim2=2).add_((~filled).to(square))
    wanted = torch.where(filled, values.gather(1, order), 0.0).unsqueeze(2)
    solved = torch.cholesky_solve(wanted, torch.linalg.cholesky(square)).squeeze(2)
    return values - torch.bmm(solved.unsqueeze(1), columns).squeeze(1)
