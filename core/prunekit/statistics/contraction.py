"""Products of activations and returned gradients.

Every linear map is brought to one form: per example n and group g, the weight's gradient is
``Σ_t v[n,g,b,t] u[n,g,a,t]`` with u from what entered, v from what came back, and t over the positions at
which the weight is used (tokens, output pixels, second uses of the same weight). A transposed convolution
is the adjoint of a convolution: there the returned gradient is the one that is unfolded. From then on
there is one set of rules for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prunekit.statistics.capture import Geometry, Use


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
    """The factor that is the same for every vector sent back, ``[N, groups, ·, T]``."""
    x, geometry = use.input, use.geometry
    if geometry.bias:
        positions = use.output_shape[1:].numel() // _bias_size(use)
        return x.new_ones(1, 1, 1, 1).expand(x.shape[0], 1, 1, positions)
    if geometry.dims == 0:
        return x.reshape(x.shape[0], -1, x.shape[-1]).transpose(1, 2).unsqueeze(1)
    if geometry.transposed:
        return x.reshape(x.shape[0], geometry.groups, x.shape[1] // geometry.groups, -1)
    return windows(x, geometry, use.output_shape[2:])


def outward(use: Use, returned: Tensor) -> Tensor:
    """The factor made of a gradient with respect to the use's output, ``[N, groups, ·, T]``."""
    geometry = use.geometry
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


def gradient(uses: Sequence[Use], returned: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """Sum over examples of one parameter's gradient, from its uses."""
    u = joined([inward(use) for use in uses])
    v = joined([outward(use, g) for use, g in zip(uses, returned, strict=True)])
    dtype = torch.promote_types(u.dtype, v.dtype)  # autocast gives the two different ones
    return as_parameter(uses[0], torch.einsum("ngbt,ngat->gba", v.to(dtype), u.to(dtype)), shape)


def _bias_size(use: Use) -> int:
    return use.output_shape[-1] if use.geometry.dims == 0 else use.output_shape[1]
