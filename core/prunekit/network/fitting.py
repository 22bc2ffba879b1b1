"""Whether a tensor of a file can become one of a model without turning into other numbers."""

from __future__ import annotations

import torch
from torch import Tensor

_PLAIN = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64),
}


def unusual(tensor: Tensor) -> str:
    """What keeps a tensor from being plain numbers in memory; empty if it is that."""
    if tensor.is_meta:
        return "holds no values (a tensor on the device 'meta')"
    if tensor.is_quantized:
        return f"is quantised ({tensor.dtype}); store it dequantised"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "is sparse or nested; store it dense"
    if tensor.dtype not in _PLAIN:
        return f"is {tensor.dtype}; store it as float32 or another type that computes"
    return ""


def misfit(stored: Tensor, expected: Tensor) -> str:
    """What keeps a stored tensor from taking the place of a model's; empty if it fits.

    Its values become those of the model's type: rounding is no misfit, overflow and lost fractions are.
    """
    if odd := unusual(stored):
        return odd
    if stored.shape != expected.shape:
        return f"{list(stored.shape)} in the file, {list(expected.shape)} in the model"
    if stored.is_complex() and not expected.is_complex():
        return f"is complex in the file and {expected.dtype} in the model"
    if (stored.is_floating_point() or stored.is_complex()) and not bool(torch.isfinite(stored).all()):
        return "holds values that are not finite"
    became = stored.to(expected.dtype)
    if became.is_floating_point() or became.is_complex():
        whole = bool(torch.isfinite(became).all())
    else:
        whole = torch.equal(became.to(stored.dtype), stored)
    return "" if whole else f"holds values that {expected.dtype} cannot hold"
