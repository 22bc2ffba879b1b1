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
    over pairs of positions, ``Σ_tt' (Σ_c v_ct v_ct') u_t u_t'``, which merges the classes and the examples
    too and forms no per-example gradient. Many: per-example products, squared while a cache holds them.

    Args:
        uses: All uses of the parameter in this pass.
        columns: How many ``v`` will come.
        dtype: In which products are formed and summed.
    """

    def __init__(self, uses: Sequence[Use], columns: int, dtype: torch.dtype) -> None:
        self._uses = uses
        self._dtype = dtype
        self._u = joined([inward(use) for use in uses]).to(dtype)
        positions = self._u.shape[-1]
        # Expanding pays while there are fewer pairs of positions than columns times positions.
        self._rule: _Products | _OnePosition | _Pairs = _Products(self._u)
        if positions == 1:
            self._rule = _OnePosition(self._u)
        elif positions <= 2 * columns - 1:
            self._rule = _Pairs(self._u)

    def add(self, returned: Sequence[Tensor]) -> None:
        """Add one column: the gradient at each use's output."""
        v = joined([outward(use, g) for use, g in zip(self._uses, returned, strict=True)]).to(self._dtype)
        self._rule.add(v)

    def total(self, shape: torch.Size) -> Tensor:
        """The sum, in the parameter's shape."""
        total = self._rule.total()
        return self._u.new_zeros(shape) if total is None else as_parameter(self._uses[0], total, shape)


class _Products:
    """Per-example products, squared at once."""

    def __init__(self, u: Tensor) -> None:
        self._u = u.transpose(-1, -2)
        self._sum: Tensor | None = None

    def add(self, v: Tensor) -> None:
        n, groups, b, _ = v.shape
        a = self._u.shape[-1]
        if self._sum is None:
            self._sum = v.new_zeros(groups, b, a)
            self._rows = max(1, min(n, PIECE_BYTES // (groups * b * a * v.element_size())))
            self._room = v.new_empty(self._rows, groups, b, a)
        for start in range(0, n, self._rows):
            rows = min(self._rows, n - start)
            # One room for all: fresh memory costs more than the product where positions are few.
            piece = torch.matmul(
                v[start : start + rows], self._u[start : start + rows], out=self._room[:rows]
            )
            for one in piece:
                self._sum.addcmul_(one, one)

    def total(self) -> Tensor | None:
        return self._sum


class _OnePosition:
    """Classes merge first: ``Σ_n (Σ_c v²) u²``."""

    def __init__(self, u: Tensor) -> None:
        self._u = u
        self._sum: Tensor | None = None

    def add(self, v: Tensor) -> None:
        self._sum = v.square() if self._sum is None else self._sum.addcmul_(v, v)

    def total(self) -> Tensor | None:
        if self._sum is None:
            return None
        return torch.einsum("ngbt,ngat->gba", self._sum, self._u.square())


class _Pairs:
    """Classes and examples merge: ``Σ_tt' Σ_n (Σ_c v_ct v_ct') (u_t u_t')``, positions outermost in memory."""

    def __init__(self, u: Tensor) -> None:
        self._u = u
        self._columns: list[Tensor] = []

    def add(self, v: Tensor) -> None:
        self._columns.append(v.permute(3, 1, 0, 2).contiguous())  # position, group, example, outward

    def total(self) -> Tensor | None:
        if not self._columns:
            return None
        u = self._u.permute(3, 1, 0, 2).contiguous()
        positions, groups, _, a = u.shape
        b = self._columns[0].shape[-1]
        total = u.new_zeros(groups, b, a)
        for t in range(positions):
            merged = torch.zeros_like(self._columns[0][t:])
            for v in self._columns:
                merged.addcmul_(v[t:], v[t])
            merged[1:] *= 2  # t < t' stands for both orders
            products = u[t:] * u[t]
            for g in range(groups):
                total[g].addmm_(merged[:, g].reshape(-1, b).t(), products[:, g].reshape(-1, a))
        # Pairs may cancel to zero; rounding must not leave a negative square.
        return total.clamp_(min=0)


def _bias_size(use: Use) -> int:
    return use.output_shape[-1] if use.geometry.dims == 0 else use.output_shape[1]
