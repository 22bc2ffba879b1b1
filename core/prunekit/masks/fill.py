"""One value where a mask says so."""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PIECE = 1 << 16  # values, which with their bits stay in the cache


def fill_(values: Tensor, where: Tensor, value: float = 0.0) -> None:
    """``values.masked_fill_(where, value)``, bit for bit, for a mask of the same shape.

    On a CPU torch's own branches at every value, which takes ten times as long where a mask has no pattern. So
    bits are combined there, a piece at a time, since those of a mask take as much memory as the values.

    Examples:
        >>> values = torch.tensor([1.0, float("nan"), 3.0])
        >>> fill_(values, torch.tensor([False, True, False]))
        >>> values.tolist()
        [1.0, 0.0, 3.0]
    """
    plain = type(values) in (Tensor, torch.nn.Parameter) and values.is_cpu and values.layout == torch.strided
    if not (plain and values.is_floating_point() and values.ndim):
        values.masked_fill_(where, value)
        return
    kind = _BITS[values.element_size()]
    fill = int(torch.full((), value, dtype=values.dtype, device="cpu").view(kind))
    rows = max(1, _PIECE * len(values) // max(1, values.numel()))
    pieces = (torch.split(t, rows) for t in (values.detach().view(kind), where))
    for bits, here in zip(*pieces, strict=True):
        ones = here.to(kind)
        bits.bitwise_and_(ones - 1)  # no bit where it is 1, all where it is 0
        if fill:
            bits.bitwise_or_(ones.mul_(fill))
