"""Curvature in blocks, and its damped inverse a few blocks at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from prunekit import Detailed, PrunekitError, RunError, UnsupportedError
from prunekit.masks import FlatIndex
from prunekit_plugins._linalg.inversion import inverse

_MATRICES = 6  # of a block in work: curvature, damped, inverse, and what inverting and eliminating need
_PIECE = 128 << 20


class Family(ABC):
    """The blocks of one layer, largest first, padded to the size of the largest.

    Attributes:
        layer: The parameter; ``None`` for a block over several.
        index: ``[R, k]``, where each weight stands among all weights, parameters one after another; 0 in padding.
        there: ``[R, k]``, False in padding, which comes last.
        own: Damping that these blocks add to everyone's.
    """

    own: float = 0.0

    def __init__(self, layer: str | None, index: Tensor, there: Tensor) -> None:
        sizes = there.sum(1)
        order = sizes.argsort(descending=True, stable=True)
        self.layer, self.index, self.there = layer, index[order], there[order]
        self.sizes: list[int] = sizes[order].tolist()
        self.order = order

    @abstractmethod
    def curvature(self, start: int, stop: int) -> Tensor:
        """Blocks ``start`` to ``stop``, ``[R, k, k]`` with k that of ``start``, float64, zero in padding."""

    def curved(self, change: Tensor) -> float:
        """``Σ Δᵀ C Δ`` over all blocks, for a change of all weights."""
        total = 0.0
        for start, stop in self.pieces(_PIECE):
            part = self.at(change, start, stop)
            total += float(torch.einsum("ri,rij,rj->", part, self.curvature(start, stop), part))
        return total

    def damped(self, start: int, stop: int, damping: float) -> Tensor:
        """Blocks with the damping added, and the identity in padding."""
        blocks = self.curvature(start, stop)
        there = self.there[start:stop, : blocks.shape[1]]
        blocks.diagonal(dim1=1, dim2=2).add_(there.to(blocks) * damping + (~there).to(blocks))
        return blocks

    def inverses(self, start: int, stop: int, damping: float) -> tuple[Tensor, Tensor]:
        """Damped blocks inverted, the identity in padding, not to be written to; and which are definite ``[R]``."""
        return inverse(self.damped(start, stop, damping))

    def inverse_diagonal(self, start: int, stop: int) -> Tensor | None:
        """The inverses' diagonals ``[R, k]``, where they can be had without the inverses."""
        return None

    def with_damping(self, damping: float) -> Self:
        """The same blocks for another damping: themselves, unless the damping is part of them."""
        return self

    def held(self) -> int:
        """Bytes that all inverses take, those apart that :meth:`lasts` leaves out."""
        return sum(8 * size**2 for size in self.sizes)

    def lasts(self, start: int) -> bool:
        """Whether the inverses of the piece from ``start`` are to be kept if there is room."""
        return True

    def at(self, values: Tensor, start: int, stop: int) -> Tensor:
        """A vector over all weights, at some blocks; zero in padding."""
        index, there = self.placed(start, stop)
        return torch.where(there, values[index], torch.zeros((), dtype=values.dtype, device=values.device))

    def placed(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Index and there of some blocks, as wide as the first."""
        k = self.sizes[start]
        return self.index[start:stop, :k], self.there[start:stop, :k]

    def pieces(self, room: int) -> Iterator[tuple[int, int]]:
        """Cut into runs of blocks whose padded matrices take at most ``room`` bytes, or one block."""
        start = 0
        while start < len(self.sizes) and self.sizes[start]:
            stop = min(len(self.sizes), start + max(1, room // (8 * self.sizes[start] ** 2)))
            while stop > start and not self.sizes[stop - 1]:
                stop -= 1
            yield start, stop
            start = stop

    def map(self, function: Any) -> Family:
        """The same with the function applied to every tensor, such as a copy to a device."""
        mapped: Family = object.__new__(type(self))
        for name, value in vars(self).items():
            if hasattr(value, "map"):
                setattr(mapped, name, value.map(function))
            else:
                setattr(mapped, name, function(value) if isinstance(value, Tensor) else value)
        return mapped


@dataclass(frozen=True)
class Chunk:
    """Some blocks with their inverse.

    Attributes:
        family: Where they come from.
        start: The first.
        stop: One past the last.
        index: ``[R, k]``.
        there: ``[R, k]``.
        inverse: ``[R, k, k]``, float64; the identity in padding.
    """

    family: Family
    start: int
    stop: int
    index: Tensor
    there: Tensor
    inverse: Tensor

    @property
    def alike(self) -> bool:
        """Whether all of them have the same inverse, of which there is one."""
        return len(self.inverse) > 1 and self.inverse.stride(0) == 0

    def at(self, values: Tensor) -> Tensor:
        """A vector over all weights, at these blocks; zero in padding."""
        return self.family.at(values, self.start, self.stop)


class Blocks(Detailed):
    """The diagonal of (C + αI)⁻¹ by parameter, in its shape (zero where pruned), and the blocks themselves.

    Inverses are kept where half the memory budget holds them, and computed anew for every use where not.

    Args:
        statistic: Its name, for messages.
        shapes: By parameter, in order.
        families: All blocks over the kept weights.
        damping: α.
        memory: Bytes.
    """

    zero_where_unseen = False

    def __init__(
        self,
        statistic: str,
        shapes: Mapping[str, torch.Size],
        families: Sequence[Family],
        damping: float,
        memory: int,
    ) -> None:
        self.statistic, self.families, self.damping, self.memory = statistic, list(families), damping, memory
        self._keeps = sum(family.held() for family in families) <= memory // 2
        self._kept: dict[tuple[int, int], Tensor] = {}
        index_of = FlatIndex(shapes)
        device = families[0].index.device if families else None
        flat = torch.zeros(index_of.total, dtype=torch.float64, device=device)
        for number, family in enumerate(self.families):
            for start, stop in family.pieces(self._room):
                index, there = family.placed(start, stop)
                diagonals = family.inverse_diagonal(start, stop)
                if diagonals is None:
                    diagonals = self._inverse(number, start, stop).diagonal(dim1=1, dim2=2)
                flat[index[there]] = diagonals[there]
        super().__init__(index_of.split(flat))

    def with_damping(self, damping: float) -> Self:
        """The inverse of the same curvature with another damping."""
        shapes = {name: t.shape for name, t in self.items()}
        families = [family.with_damping(damping) for family in self.families]
        other = type(self)(self.statistic, shapes, families, damping, self.memory)
        for name, diagonal in self.items():
            other[name].masked_fill_(diagonal == 0, 0.0)  # what is pruned, where blocks go on over it
        return other

    def chunks(self, layer: str | None = None) -> Iterator[Chunk]:
        """Blocks with their inverses, a piece of the memory budget at a time.

        Raises:
            UnsupportedError: If a damped block is not positive definite, with the damping that would do.
        """
        for number, family in enumerate(self.families):
            if layer is not None and family.layer != layer:
                continue
            for start, stop in family.pieces(self._room):
                inverses = self._inverse(number, start, stop)
                yield Chunk(family, start, stop, *family.placed(start, stop), inverses)

    def curved(self, change: Tensor) -> float:
        """``Δᵀ C Δ`` without damping, for a change of all weights."""
        return sum(family.curved(change) for family in self.families)

    @property
    def _room(self) -> int:
        """Bytes that the matrices of one piece may take; on a GPU many blocks share each kernel."""
        share = self.memory // _MATRICES
        return share if self.families and self.families[0].index.is_cuda else min(_PIECE, share)

    def _inverse(self, number: int, start: int, stop: int) -> Tensor:
        known = self._kept.get((number, start))
        if known is not None:
            return known
        family = self.families[number]
        inverses, definite = family.inverses(start, stop, self.damping)
        if not bool(definite.all()):
            bad = start + int((~definite).nonzero()[0])
            damped = family.damped(bad, bad + 1, self.damping)[0]
            raise not_definite(self.statistic, family.layer, damped, self.damping + family.own)
        if self._keeps and family.lasts(start):
            self._kept[number, start] = inverses
        return inverses


def not_definite(statistic: str, layer: str | None, damped: Tensor, damping: float) -> PrunekitError:
    """The error for a block that has no inverse, with the damping that would give it one, if any."""
    if not bool(damped.isfinite().all()):
        where = "the curvature" if layer is None else f"the curvature of {layer}"
        return RunError(
            f"{statistic}: {where} is not finite; the loss or its derivatives overflow at these weights"
        )
    values = torch.linalg.eigvalsh(damped)
    lowest = float(values[0]) - damping
    rounding = len(values) * torch.finfo(values.dtype).eps * float(values[-1])
    where = "the curvature" if layer is None else f"a block of the curvature of {layer}"
    return UnsupportedError(
        f"{statistic}: {where} + {damping:g}·I is not positive definite: the smallest eigenvalue of the curvature "
        f"is {lowest:.3g}; damping must be above {max(0.0, rounding - lowest):.3g}"
    )
