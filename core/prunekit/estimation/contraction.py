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

from prunekit.estimation.capture import Geometry, Use

PIECE_BYTES = 4 << 20
"""Per-example products are squared in pieces of about this size, which a core's cache holds."""


def windows(x: Tensor, geometry: Geometry, positions: Sequence[int]) -> Tensor:
    """Unfold any number of spatial axes, with stride, padding and dilation, as a view where possible.

    Args:
        x: ``[N, C, *spatial]``.
        geometry: Kernel, stride, padding, dilation and groups.
        positions: Number of places of the kernel along each spatial axis.

    Returns:
        ``[N, groups, C // groups * prod(kernel), prod(positions)]``.
    """
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
    x = x.contiguous()
    n, channels = x.shape[:2]
    strides = x.stride()
    size = (n, channels, *geometry.kernel, *positions)
    stride = (
        strides[0],
        strides[1],
        *(s * d for s, d in zip(strides[2:], geometry.dilation, strict=True)),
        *(s * t for s, t in zip(strides[2:], geometry.stride, strict=True)),
    )
    view = x.as_strided(size, stride)
    inner = channels // geometry.groups
    for k in geometry.kernel:
        inner *= k
    outer = 1
    for o in positions:
        outer *= o
    return view.reshape(n, geometry.groups, inner, outer)


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


class SquareSum:
    """``Σ_n Σ_c (Σ_t v_c u)²`` for one parameter, the returned gradients ``v_c`` arriving one by one.

    One position: the classes merge before one product of squares. Few positions: the square is expanded
    over pairs of positions, ``Σ_tt' (Σ_c v_ct v_ct') u_t u_t'``, which merges the classes too and forms no
    per-example gradient. Many: per-example products, squared in pieces that fit a cache.

    Args:
        uses: All uses of the parameter in this pass.
        columns: How many ``v`` will come.
        dtype: In which products are formed and summed.
    """

    def __init__(self, uses: Sequence[Use], columns: int, dtype: torch.dtype) -> None:
        self._uses = uses
        self._dtype = dtype
        self._u = joined([inward(use) for use in uses]).to(dtype)
        t = self._u.shape[-1]
        self._pairs: tuple[Tensor, Tensor] | None = None
        # Expanding pays while there are fewer pairs of positions than columns times positions.
        if 1 < t <= 2 * columns - 1:
            first, second = torch.triu_indices(t, t, device=self._u.device)
            self._pairs = first, second
        self._merges = t == 1 or self._pairs is not None
        self._sum: Tensor | None = None

    def add(self, returned: Sequence[Tensor]) -> None:
        """Add one column: the gradient at each use's output."""
        v = joined([outward(use, g) for use, g in zip(self._uses, returned, strict=True)]).to(self._dtype)
        if self._merges:
            left, right = (v, v) if self._pairs is None else (v[..., self._pairs[0]], v[..., self._pairs[1]])
            self._sum = left * right if self._sum is None else self._sum.addcmul_(left, right)
            return
        n, groups, b, _ = v.shape
        a = self._u.shape[2]
        if self._sum is None:
            self._sum = v.new_zeros(groups, b, a)
        rows = max(1, PIECE_BYTES // (groups * b * a * v.element_size()))
        for start in range(0, n, rows):
            piece = torch.matmul(v[start : start + rows], self._u[start : start + rows].transpose(-1, -2))
            self._sum += piece.square_().sum(0)

    def total(self, shape: torch.Size) -> Tensor:
        """The sum, in the parameter's shape."""
        if self._sum is None:
            return self._u.new_zeros(shape)
        total = self._sum
        if self._merges:
            if self._pairs is None:
                squares = self._u.square()
            else:
                first, second = self._pairs
                squares = self._u[..., first] * self._u[..., second]
                squares *= torch.where(first == second, 1.0, 2.0).to(squares.dtype)
            # Pairs may cancel to zero; rounding must not leave a negative square.
            total = torch.einsum("ngbk,ngak->gba", total, squares).clamp_(min=0)
        return as_parameter(self._uses[0], total, shape)


def _bias_size(use: Use) -> int:
    return use.output_shape[-1] if use.geometry.dims == 0 else use.output_shape[1]
