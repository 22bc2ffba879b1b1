"""How a parameter lies in rows: one row for each output, with the weights that multiply its inputs.

A weight is used as a matrix ``[outputs, inputs]``, but it may lie transposed, several of them stacked, or some outputs
cut out of a larger one. A view of a contiguous parameter tells which by its strides alone, so nothing has to be known
of the functions that made it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The rows of a parameter.

    Attributes:
        shape: The parameter's.
        inputs: Weights of a row.
        across: 1 if a row's weights lie one after another; of a transposed matrix ``[inputs, outputs]``, or a stack of
            such, the number of its outputs, which lie between two weights of a row.
        kernel: Places of a convolution's kernel, which lie innermost in a row.
    """

    shape: tuple[int, ...]
    inputs: int
    across: int = 1
    kernel: int = 1

    @classmethod
    def plain(cls, shape: Sequence[int]) -> Self:
        """Those of a layer's weight ``[outputs, inputs, *kernel]``; of a bias, rows of one."""
        return cls(tuple(shape), math.prod(shape[1:]), kernel=math.prod(shape[2:]))

    @property
    def count(self) -> int:
        """Number of rows."""
        return math.prod(self.shape) // max(1, self.inputs)

    def of(self, tensor: Tensor) -> Tensor:
        """What has the parameter's shape, in rows ``[count, inputs]``; a view where that can be."""
        if self.across == 1:
            return tensor.reshape(self.count, self.inputs)
        return tensor.reshape(-1, self.inputs, self.across).transpose(1, 2).reshape(self.count, self.inputs)

    def back(self, rows: Tensor) -> Tensor:
        """Undo :meth:`of`."""
        if self.across == 1:
            return rows.reshape(self.shape)
        return rows.reshape(-1, self.across, self.inputs).transpose(1, 2).reshape(self.shape)

    def column(self, flat: Tensor) -> Tensor:
        """Which weight of its row each is, from its place in the flattened parameter."""
        return flat // self.across % self.inputs


@dataclass(frozen=True)
class Part:
    """The rows that a use multiplies by.

    Attributes:
        rows: Of the whole parameter.
        starts: The first row for each group of a batch of matrices, or of a convolution.
        units: How many rows each group has.
    """

    rows: Rows
    starts: tuple[int, ...]
    units: int

    @property
    def whole(self) -> bool:
        """Whether it is the whole parameter, row after row."""
        starts = tuple(self.units * g for g in range(len(self.starts)))
        return self.starts == starts and self.units * len(starts) == self.rows.count

    def add(self, total: Tensor, found: Tensor) -> None:
        """Add ``[groups, units, inputs]`` to the parameter's rows ``[count, inputs]``."""
        for start, values in zip(self.starts, found, strict=True):
            total[start : start + self.units] += values


def part_of(parameter: Tensor, matrices: Tensor, kernel: int = 1) -> Part | None:
    """Where some matrices lie within a parameter; ``None`` if they are no whole rows of it.

    Args:
        parameter: Contiguous, or it is the matrix itself.
        matrices: ``[groups, outputs, inputs]`` over the parameter's memory.
        kernel: Places of a convolution's kernel, innermost among the inputs.
    """
    groups, outputs, inputs = matrices.shape
    size = parameter.numel()
    if not matrices.numel():
        return None
    apart, across, along = matrices.stride()
    if not parameter.is_contiguous():
        rows = Rows.plain(parameter.shape)
        own = matrices[0].stride() == parameter.stride() and (outputs, inputs) == parameter.shape
        return Part(rows, (0,), outputs) if own and groups == 1 else None
    first = int(matrices.storage_offset() - parameter.storage_offset())
    starts = [first + g * apart for g in range(groups)] if groups > 1 else [first]
    if min(starts) < 0 or size % inputs:
        return None
    if inputs == 1 or along == 1:
        if (outputs > 1 and across != inputs) or any(start % inputs for start in starts):
            return None
        rows = Rows(tuple(parameter.shape), inputs, kernel=kernel)
        return Part(rows, tuple(s // inputs for s in starts), outputs)
    if (outputs > 1 and across != 1) or size % (inputs * along):
        return None
    # Matrices [inputs, along], one after another; some of their columns.
    places = [divmod(start, inputs * along) for start in starts]
    if any(column + outputs > along for _, column in places):
        return None
    rows = Rows(tuple(parameter.shape), inputs, along)
    return Part(rows, tuple(stack * along + column for stack, column in places), outputs)
