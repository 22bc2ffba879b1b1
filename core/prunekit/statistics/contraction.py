"""Products of activations and returned gradients.

Every linear map is brought to one form: per example n and group g, the weight's gradient is
``Σ_t v[n,g,b,t] u[n,g,a,t]`` with u from what entered, v from what came back, and t over the positions at
which the weight is used (tokens, output pixels, second uses of the same weight). A transposed convolution
is the adjoint of a convolution: there the returned gradient is the one that is unfolded. From then on
there is one set of rules for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from prunekit.statistics.capture import Use
from prunekit.statistics.products import Geometry

_PIECE = 64 << 20  # bytes


def windows(x: Tensor, geometry: Geometry, positions: Sequence[int]) -> Tensor:
    """Unfold any number of spatial axes, with stride, padding and dilation.

    Args:
        x: ``[N, C, *spatial]``.
        geometry: Kernel, stride, padding, dilation and groups.
        positions: Number of places of the kernel along each spatial axis.

    Returns:
        ``[N, groups, C // groups * prod(kernel), prod(positions)]``, a copy where it cannot be a view.
    """
    return grouped(window_view(padded(x, geometry, positions), geometry, positions), geometry)


def padded(x: Tensor, geometry: Geometry, positions: Sequence[int]) -> Tensor:
    """The input with its padding, contiguous and long enough for every window."""
    pads = [p for pair in reversed(geometry.padding) for p in pair]
    if any(pads):
        x = F.pad(x, pads)
    # A transposed convolution with output padding, or a stride that does not divide, can leave the last
    # window past the end or short of it; only `positions` windows exist.
    needed = [
        (o - 1) * s + d * (k - 1) + 1
        for o, s, d, k in zip(positions, geometry.stride, geometry.dilation, geometry.kernel, strict=True)
    ]
    short = [max(0, n - have) for n, have in zip(needed, x.shape[2:], strict=True)]
    if any(short):
        x = F.pad(x, [p for extra in reversed(short) for p in (0, extra)])
    return x.contiguous()


def window_view(x: Tensor, geometry: Geometry, positions: Sequence[int]) -> Tensor:
    """All windows of a padded input as a view, ``[N, C, *kernel, *positions]``."""
    strides = x.stride()
    stride = (
        strides[0],
        strides[1],
        *(s * d for s, d in zip(strides[2:], geometry.dilation, strict=True)),
        *(s * t for s, t in zip(strides[2:], geometry.stride, strict=True)),
    )
    return x.as_strided((*x.shape[:2], *geometry.kernel, *positions), stride)


def grouped(view: Tensor, geometry: Geometry) -> Tensor:
    """``[N, C, *kernel, *positions]`` as ``[N, groups, C // groups * prod(kernel), prod(positions)]``."""
    n, channels = view.shape[:2]
    inner = channels // geometry.groups * torch.Size(geometry.kernel).numel()
    return view.reshape(n, geometry.groups, inner, -1)


def inward(use: Use) -> Tensor:
    """The factor that is the same for every vector sent back, ``[N, groups, ·, T]``; N is 1 for a batch of maps."""
    x, geometry = use.input, use.geometry
    if geometry.bias:
        positions = use.output_shape[1:].numel() // _bias_size(use)
        return x.new_ones(1, 1, 1, 1).expand(x.shape[0], 1, 1, positions)
    if geometry.batched:
        return x.transpose(1, 2).unsqueeze(0)
    if geometry.dims == 0:
        return x.reshape(x.shape[0], -1, x.shape[-1]).transpose(1, 2).unsqueeze(1)
    if geometry.transposed:
        return x.reshape(x.shape[0], geometry.groups, x.shape[1] // geometry.groups, -1)
    return windows(x, geometry, use.output_shape[2:])


def outward(use: Use, returned: Tensor) -> Tensor:
    """The factor made of a gradient with respect to the use's output, ``[N, groups, ·, T]``."""
    geometry = use.geometry
    if geometry.batched:
        return returned.transpose(1, 2).unsqueeze(0)
    if geometry.dims == 0:
        return returned.reshape(returned.shape[0], -1, returned.shape[-1]).transpose(1, 2).unsqueeze(1)
    if geometry.bias:
        return returned.reshape(returned.shape[0], 1, returned.shape[1], -1)
    if geometry.transposed:
        return windows(returned, geometry, use.input.shape[2:])
    return returned.reshape(returned.shape[0], geometry.groups, returned.shape[1] // geometry.groups, -1)


def joined(factors: Sequence[Tensor]) -> Tensor:
    """One factor over all uses of a parameter: a second use only adds positions."""
    return factors[0] if len(factors) == 1 else torch.cat(list(factors), -1)


def as_parameter(use: Use, total: Tensor, shape: torch.Size) -> Tensor:
    """Bring ``[groups, outward, inward]`` into the parameter's layout."""
    transposed = use.geometry.transposed and not use.geometry.bias
    return (total.transpose(1, 2) if transposed else total).reshape(shape)


def placed(use: Use, total: Tensor, shape: torch.Size) -> Tensor:
    """Bring ``[groups, outward, inward]`` of a use to where its part lies in the parameter; zeros elsewhere."""
    if use.whole or use.part is None:
        return as_parameter(use, total, shape)
    rows = use.part.rows
    found = total.new_zeros(rows.count, rows.inputs)
    use.part.add(found, total)
    return rows.back(found)


def gradient(uses: Sequence[Use], returned: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """Sum over examples of one parameter's gradient, from its uses."""
    parts = [
        placed(use, _summed(use, arrived), shape) if use.input.numel() else arrived.new_zeros(shape)
        for use, arrived in zip(uses, returned, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def _summed(use: Use, returned: Tensor) -> Tensor:
    """``[groups, outward, inward]``, added up some examples at a time where a convolution is unfolded."""
    step = len(use.input)
    if use.geometry.dims:
        unfolded = use.input.nbytes // max(1, step) * torch.Size(use.geometry.kernel).numel()
        step = max(1, _PIECE // max(1, unfolded))
    parts = []
    for start in range(0, len(use.input), max(1, step)):
        some = replace(use, input=use.input[start : start + step])
        u, v = inward(some), outward(some, returned[start : start + step])
        dtype = torch.promote_types(u.dtype, v.dtype)  # autocast gives the two different ones
        parts.append(torch.einsum("ngbt,ngat->gba", v.to(dtype), u.to(dtype)))
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def _bias_size(use: Use) -> int:
    return use.output_shape[-1] if use.geometry.dims == 0 else use.output_shape[1]
