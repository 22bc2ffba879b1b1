"""Blocks of outer products of one parameter's rows, added up while the data go by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit_plugins._curvature.block_families import Summed, Weighted
from prunekit_plugins._curvature.blocks import Family

_TOGETHER = 512  # rows of a parameter that are added up at once
_STRIPE = 8 << 20  # bytes of rows that are formed at once


@dataclass(frozen=True)
class Places:
    """The blocks of a parameter's kept weights.

    Attributes:
        index: ``[R, k]``, flat positions in the parameter; 0 in padding.
        there: ``[R, k]``, False in padding, which comes last.
        units: ``[R]``, the unit that a block's weights feed, where they feed one.
    """

    index: Tensor
    there: Tensor
    units: Tensor


class BlockSums:
    """``Σ r rᵀ`` within each block of one parameter, r the rows that it is given.

    Args:
        name: The parameter.
        start: Where it begins among all weights.
        size: How many weights it has.
        places: The blocks.
        room: Makes the sums ``[R, k, k]`` when they are first needed, or refuses.
    """

    def __init__(self, name: str, start: int, size: int, places: Places, room: Callable[[], Tensor]) -> None:
        self.name, self.start, self.places = name, start, places
        self._made: Tensor | None = None
        self._room = room
        self._waiting: list[tuple[Tensor, Tensor]] = []
        order = places.index.flatten()
        # Nothing pruned, nothing padded, and units not apart in memory as those of a transposed convolution are.
        self._plain = bool(places.there.all()) and torch.equal(order, torch.arange(size, device=order.device))

    @property
    def sums(self) -> Tensor:
        """``[R, k, k]``, in the weights' dtype."""
        if self._made is None:
            self._made = self._room()
        return self._made

    @property
    def held(self) -> int:
        """Bytes of what :meth:`settle` would add up and free."""
        return 0

    def add_factors(self, inputs: Tensor, returned: Tensor) -> None:
        """Add the rows ``v uᵀ``: u ``[examples, inputs]``, v ``[examples, outputs]``.

        They wait until there are many: the sums are far larger than the factors, and are then read and written once.
        """
        self._waiting.append((inputs, returned))
        if sum(len(u) for u, _ in self._waiting) >= _TOGETHER:
            self.settle()

    def add_rows(self, parts: Iterator[Tensor]) -> None:
        """Add rows ``[examples, weights]``."""
        index, there = self.places.index, self.places.there
        if not len(index):
            return
        width, order = index.shape[1], index.flatten()
        for rows in parts:
            if self._plain:
                picked = rows.view(len(rows), -1, width)
            else:
                picked = rows[:, order].view(len(rows), -1, width)
                picked = picked.masked_fill_(~there, 0.0)
            picked = picked.to(self.sums.dtype)
            self.sums.baddbmm_(picked.permute(1, 2, 0), picked.transpose(0, 1))

    def add_column(self, row: int, place: int, column: Tensor) -> None:
        """Add to a weight's column of its block, given over all weights."""
        index, there = self.places.index[row], self.places.there[row]
        within = column[index + self.start].masked_fill(~there, 0.0)
        self.sums[row, place] += within.to(self.sums.dtype)

    def end_batch(self) -> None:
        """All columns of a batch were given."""

    def settle(self) -> None:
        """Add up what waits."""
        index, there = self.places.index, self.places.there
        if not self._waiting:
            return
        # A weight's entries of all rows side by side: picking weights then copies runs of memory.
        u, v = (torch.cat(parts).t().contiguous() for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        if not len(index):
            return
        inputs, count = u.shape
        blocks = max(1, _STRIPE // (count * index.shape[1] * u.element_size()))
        # Fresh memory would cost more than what is written to it.
        scratch = u.new_empty(2, min(blocks, len(index)) * index.shape[1], count)
        for start in range(0, len(index), blocks):
            part, some = index[start : start + blocks], there[start : start + blocks]
            flat = part.flatten()
            rows, other = scratch[:, : len(flat)]
            torch.index_select(v, 0, flat // inputs, out=rows)
            torch.index_select(u, 0, flat % inputs, out=other)
            rows = rows.mul_(other).view(*part.shape, count)
            if not bool(some.all()):
                rows.masked_fill_(~some.unsqueeze(2), 0.0)
            self.sums[start : start + blocks].baddbmm_(rows, rows.transpose(1, 2))

    def divided(self, normaliser: float, symmetric: bool) -> Family | None:
        """The blocks, per loss normaliser; ``None`` where there is none.

        Args:
            normaliser: The loss's.
            symmetric: False where rounding makes columns differ from rows, as in a Hessian.
        """
        self.settle()
        if not len(self.places.index):
            return None
        if not symmetric:
            self.sums.copy_((self.sums + self.sums.transpose(1, 2)) / 2)
        self.sums.div_(normaliser)
        return Summed(self.name, self.places.index + self.start, self.places.there, self.sums)


class MergedColumns(BlockSums):
    """The same where each block feeds one unit: what returns from all columns of an example merges before the product.

    With one position per example the block is ``Σ_n (Σ_c g²_cn) a_n a_nᵀ``: a and ``Σ_c g²`` are kept, and no block
    is formed before its inverse is asked for.
    """

    def __init__(self, name: str, start: int, size: int, places: Places, room: Callable[[], Tensor]) -> None:
        super().__init__(name, start, size, places, room)
        self._batch: tuple[Tensor, Tensor] | None = None
        self._factors: list[tuple[Tensor, Tensor]] = []

    @property
    def held(self) -> int:
        """Bytes of the factors."""
        return sum(t.nbytes for pair in self._factors for t in pair)

    def add_factors(self, inputs: Tensor, returned: Tensor) -> None:
        """Merge the columns of a batch."""
        if self._batch is None:
            self._batch = inputs, returned.square()
        else:
            self._batch[1].addcmul_(returned, returned)

    def end_batch(self) -> None:
        """Keep the batch's factors."""
        if self._batch is not None:
            self._factors.append(self._batch)
            self._batch = None

    def settle(self) -> None:
        """Form the Gram matrices of the factors so far, and forget these."""
        if not self._factors:
            return
        family = self._weighted()
        self._factors.clear()
        for row in range(len(family.sizes)):
            k = family.sizes[row]
            self.sums[family.order[row], :k, :k] += family.curvature(row, row + 1)[0].to(self.sums.dtype)

    def divided(self, normaliser: float, symmetric: bool) -> Family | None:
        """Factors stay factors, unless there are sums too: tokens may be one in some batches, several in others."""
        if not self._factors or self._made is not None:
            return super().divided(normaliser, symmetric)
        for _, weights in self._factors:
            weights.div_(normaliser)
        return self._weighted()

    def _weighted(self) -> Weighted:
        inputs, weights = (torch.cat(parts) for parts in zip(*self._factors, strict=True))
        places, start = self.places, self.start
        return Weighted(self.name, places.index + start, places.there, places.units, inputs, weights, start)
