"""``Σ_n Σ_c (Σ_t v_c u)²`` for one parameter: sums over examples and columns of squared products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunekit.statistics.capture import Use
from prunekit.statistics.contraction import (
    as_parameter,
    grouped,
    inward,
    joined,
    outward,
    padded,
    window_view,
)

PIECE_BYTES = 2 << 20
"""Per-example products are squared in pieces of about this size, which a core's cache holds."""

GPU_PIECE_BYTES = 64 << 20
"""On a GPU: as its cache holds; smaller pieces leave it idle between kernels."""


_PRODUCT_COST = 16
"""What it costs to write and square an entry of a per-example product, in multiplications; measured."""


STACKED = 3
"""Columns that wait for each other where products are formed; with more, what waits falls out of the caches."""


def merges_pairs(positions: int, columns: int) -> bool:
    """Whether expanding over pairs of positions takes fewer multiplications, per entry and example."""
    return positions * (positions + 1) // 2 <= columns * (positions + _PRODUCT_COST)


class Scratch:
    """Memory that is used again and again: a fresh page costs more than what is written to it."""

    def __init__(self, memory: int, device: torch.device) -> None:
        gpu = device.type == "cuda"
        self.piece = min(GPU_PIECE_BYTES, memory // 16) if gpu else min(PIECE_BYTES, memory // 128)
        """Bytes of a piece of work."""
        self._held: dict[str, Tensor] = {}

    def room(self, purpose: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Uninitialised, of this shape; the next call for the same purpose overwrites it."""
        size = torch.Size(shape).numel()
        held = self._held.get(purpose)
        if held is None or held.numel() < size or held.dtype != like.dtype or held.device != like.device:
            self._held.pop(purpose, None)
            held = self._held[purpose] = torch.empty(size, dtype=like.dtype, device=like.device)
        return held[:size].view(*shape)


class SquareSum:
    """The sum for one parameter, the returned gradients ``v_c`` arriving one by one.

    One position: the classes merge before one product of squares. Few positions: the square is expanded
    over pairs of positions, ``Σ_tt' (Σ_c v_ct v_ct') u_t u_t'``, which merges the classes and the examples
    too and forms no per-example gradient. Many: per-example products, squared while a cache holds them.

    Args:
        uses: All uses of the parameter in this pass.
        columns: How many ``v`` will come.
        dtype: In which products are formed and summed.
        scratch: Shared among parameters and batches.
    """

    def __init__(self, uses: Sequence[Use], columns: int, dtype: torch.dtype, scratch: Scratch) -> None:
        self._uses = uses
        self._dtype = dtype
        u = _Inward(uses, dtype, scratch)
        self._rule: _Products | _OnePosition | _Pairs
        if u.positions == 1:
            self._rule = _OnePosition(u, scratch)
        elif merges_pairs(u.positions, columns):
            self._rule = _Pairs(u, scratch)
        else:
            self._rule = _Products(u, columns, scratch)

    def add(self, returned: Sequence[Tensor]) -> None:
        """Add one column: the gradient at each use's output."""
        v = joined([outward(use, g) for use, g in zip(self._uses, returned, strict=True)])
        self._rule.add(v.to(self._dtype))

    def total(self, shape: torch.Size) -> Tensor | None:
        """The sum, in the parameter's shape; ``None`` if no column came."""
        total = self._rule.total()
        return None if total is None else as_parameter(self._uses[0], total, shape)


class _Inward:
    """The factor of what entered, ``[N, groups, ·, positions]``; a convolution's is unfolded when asked for."""

    def __init__(self, uses: Sequence[Use], dtype: torch.dtype, scratch: Scratch) -> None:
        self._scratch = scratch
        self._view: Tensor | None = None
        use = uses[0]
        geometry = use.geometry
        if len(uses) == 1 and geometry.dims and not geometry.transposed and not geometry.bias:
            places = use.output_shape[2:]
            self._geometry, self._reach = geometry, use.input.shape[2:]
            self._view = window_view(padded(use.input, geometry, places).to(dtype), geometry, places)
            self.positions = places.numel()
            self.offsets = torch.Size(geometry.kernel).numel()
            self.size = self._view.shape[1] // geometry.groups * self.offsets
        else:
            self._whole = joined([inward(use) for use in uses]).to(dtype)
            self.size, self.positions = self._whole.shape[2:]
            self.offsets = 1

    def examples(self, start: int, stop: int) -> Tensor:
        """The factor of some examples, valid until the next call for any parameter."""
        if self._view is None:
            return self._whole[start:stop]
        part = self._view[start:stop]
        return grouped(self._scratch.room("unfolded", part.shape, part).copy_(part), self._geometry)

    def whole(self) -> Tensor:
        """The factor of all examples."""
        return self._whole if self._view is None else grouped(self._view, self._geometry)

    def at(self, offset: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The factor at one place of a convolution's kernel, without the positions that see only padding.

        Returns:
            Positions, and the factor there, ``[positions, examples, groups, ·]``.
        """
        if self._view is None:
            everywhere = torch.arange(self.positions, device=self._whole.device)
            return everywhere, self._whole[start:stop].permute(3, 0, 1, 2).contiguous()
        geometry, dims = self._geometry, self._geometry.dims
        places = self._view.shape[2 + dims :]
        index: tuple[Any, ...] = np.unravel_index(offset, geometry.kernel)
        box: list[slice] = []
        for axis in range(dims):
            # Along one axis, position o looks at o·stride + index·dilation − padding.
            shift = int(index[axis]) * geometry.dilation[axis] - geometry.padding[axis][0]
            stride = geometry.stride[axis]
            low = min(places[axis], max(0, -(shift // stride)))
            high = min(places[axis], (self._reach[axis] - 1 - shift) // stride + 1)
            box.append(slice(low, max(low, high)))
        numbers = torch.arange(self.positions, device=self._view.device).view(places)
        seen = self._view[start:stop][(..., *index, *box)].flatten(2)
        n, channels, positions = seen.shape
        inner = seen.permute(2, 0, 1).reshape(positions, n, geometry.groups, channels // geometry.groups)
        return numbers[tuple(box)].flatten(), inner


class _Products:
    """Per-example products, squared at once; several columns share an unfolded input and a larger product."""

    def __init__(self, u: _Inward, columns: int, scratch: Scratch) -> None:
        self._u = u
        self._scratch = scratch
        self._together = min(columns, STACKED)
        self._waiting: list[Tensor] = []
        self._sum: Tensor | None = None

    def add(self, v: Tensor) -> None:
        self._waiting.append(v)
        if len(self._waiting) == self._together:
            self._flush()

    def total(self) -> Tensor | None:
        if self._waiting:
            self._flush()
        return self._sum

    def _flush(self) -> None:
        columns, self._waiting = self._waiting, []
        examples, groups, b, positions = columns[0].shape
        if self._sum is None:
            self._sum = columns[0].new_zeros(groups, b, self._u.size)
        piece = self._scratch.piece
        together = max(1, min(len(columns), 2 * piece // self._sum.nbytes))
        largest = max(together * self._sum.nbytes, self._u.size * positions * self._sum.element_size())
        rows = max(2, piece // largest // 2 * 2)  # bmm gives each of two cores its examples
        for start in range(0, examples, rows):
            u = self._u.examples(start, min(start + rows, examples))
            for first in range(0, len(columns), together):
                self._add([v[start : start + rows] for v in columns[first : first + together]], u)

    def _add(self, columns: Sequence[Tensor], u: Tensor) -> None:
        assert self._sum is not None
        n, groups, b, positions = columns[0].shape
        k = len(columns)
        stacked = columns[0]
        if k > 1:
            stacked = self._scratch.room("stacked", (n, groups, k, b, positions), u)
            torch.stack(list(columns), 2, out=stacked)
        room = self._scratch.room("products", (n, groups, k, b, self._u.size), u)
        left, right = stacked.reshape(n * groups, k * b, positions), u.flatten(0, 1).transpose(1, 2)
        products = room.view(n * groups, k * b, -1)
        # Not matmul: with more than one leading axis it makes a copy of its own. Alone, mm uses all cores.
        if len(left) == 1:
            torch.mm(left[0], right[0], out=products[0])
        else:
            torch.bmm(left, right, out=products)
        if room.is_cuda:  # one kernel that reads them once
            self._sum += torch.linalg.vector_norm(room, dim=(0, 2)).square_()
            return
        for example in room:
            for column in example.unbind(1):
                self._sum.addcmul_(column, column)


class _OnePosition:
    """Classes merge first: ``Σ_n (Σ_c v²) u²``."""

    def __init__(self, u: _Inward, scratch: Scratch) -> None:
        self._u = u
        self._scratch = scratch
        self._sum: Tensor | None = None

    def add(self, v: Tensor) -> None:
        self._sum = v.square() if self._sum is None else self._sum.addcmul_(v, v)

    def total(self) -> Tensor | None:
        if self._sum is None:
            return None
        u = self._u.whole()
        squares = torch.square(u, out=self._scratch.room("squares", u.shape, u))
        return torch.einsum("ngbt,ngat->gba", self._sum, squares)


class _Pairs:
    """Classes and examples merge: ``Σ_tt' Σ_n (Σ_c v_ct v_ct') (u_t u_t')``, positions outermost in memory."""

    def __init__(self, u: _Inward, scratch: Scratch) -> None:
        self._u = u
        self._scratch = scratch
        self._merged: Tensor | None = None

    def add(self, v: Tensor) -> None:
        """Add to ``Σ_c v_ct v_ct'`` for all t ≤ t'."""
        v = v.permute(3, 0, 1, 2).contiguous()  # position, example, group, outward
        positions = len(v)
        if self._merged is None:
            self._merged = v.new_zeros(positions * (positions + 1) // 2, *v.shape[1:])
        start = 0
        for t in range(positions):
            self._merged[start : start + positions - t].addcmul_(v[t:], v[t])
            start += positions - t

    def total(self) -> Tensor | None:
        if self._merged is None:
            return None
        merged, self._merged, u = self._merged, None, self._u
        pairs, n, groups, b = merged.shape
        total = merged.new_zeros(u.offsets, groups, b, u.size // u.offsets)
        largest = pairs * max(groups * b, u.size // u.offsets) * total.element_size()
        rows = max(1, 4 * self._scratch.piece // largest)
        first, second = torch.triu_indices(u.positions, u.positions, device=total.device)
        merged *= (2 - (first == second).to(merged)).view(-1, 1, 1, 1)  # a pair stands for both orders
        row_of = torch.zeros(u.positions, u.positions, dtype=torch.long, device=total.device)
        row_of[first, second] = torch.arange(pairs, device=total.device)
        for start in range(0, n, rows):
            some = merged[:, start : start + rows]
            for offset in range(u.offsets):
                valid, inward = u.at(offset, start, start + rows)
                if not len(valid):  # a place of the kernel that sees only padding
                    continue
                i, j = torch.triu_indices(len(valid), len(valid), device=total.device)
                products = inward[i] * inward[j]
                chosen = some if len(valid) == u.positions else some[row_of[valid[i], valid[j]]]
                for g in range(groups):
                    left = chosen[:, :, g].reshape(-1, b)
                    total[offset, g].addmm_(left.t(), products[:, :, g].reshape(len(left), -1))
        # Pairs may cancel to zero; rounding must not leave a negative square.
        return total.clamp_(min=0).permute(1, 2, 3, 0).reshape(groups, b, u.size)
