"""Blocks that are all parts of one matrix: the second moments of a layer's inputs, the same for every output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from prunekit_plugins._curvature.blocks import Blocks, Family
from prunekit_plugins._curvature.grams import Gram
from prunekit_plugins._linalg.inversion import inverse


class LayerGram(Family):
    """A layer's outputs, each with its inputs: ``C_r = H[K_r, K_r]``, H that of the output's group.

    Outputs that have all their inputs share one inverse, computed once. An input that is always zero has a zero row
    in H; where damping goes on the diagonal it gets a one instead. That is exact: it stands apart from the others,
    whose inverse is the same whatever stands there.

    Args:
        layer: The parameter.
        index: See :class:`Family`; block r belongs to row ``units[r]`` of the parameter.
        there: See :class:`Family`.
        units: ``[R]``.
        gram: H, float64, and how the parameter lies in rows.
        relative: Damping of its own, in units of H's mean diagonal.
        offset: Where the parameter begins among all weights.
    """

    def __init__(
        self,
        layer: str,
        index: Tensor,
        there: Tensor,
        units: Tensor,
        gram: Gram,
        relative: float,
        offset: int,
    ) -> None:
        super().__init__(layer, index, there)
        self.moments, self.rows, self.offset = gram.moments, gram.rows, offset
        self.own = relative * self.moments.mean
        self.units = units[self.order]
        self.groups = self.units // max(1, self.rows.count // len(self.gram))
        self.columns = torch.where(self.there, self.rows.column(self.index - offset), 0)
        self.whole = sum(size == self.inputs for size in self.sizes)  # blocks with all inputs: the first

    @property
    def gram(self) -> Tensor:
        """H ``[groups, inputs, inputs]``."""
        return self.moments.matrix

    @property
    def inputs(self) -> int:
        """How many inputs one unit has."""
        return self.gram.shape[1]

    @property
    def live(self) -> Tensor:
        """Inputs that are not always zero ``[groups, inputs]``."""
        return self.moments.live

    def curvature(self, start: int, stop: int) -> Tensor:
        """Gather blocks ``start`` to ``stop`` from H, its entries at each block's inputs; zero in padding."""
        k = self.sizes[start]
        rows, there = self.columns[start:stop, :k], self.there[start:stop, :k]
        blocks = self.gram[self.groups[start:stop, None, None], rows.unsqueeze(2), rows.unsqueeze(1)]
        blocks = blocks.double()
        return blocks.masked_fill_(~(there.unsqueeze(2) & there.unsqueeze(1)), 0.0)

    def curved(self, change: Tensor) -> float:
        """``Σ_r Δ_rᵀ H Δ_r``, the layer's error."""
        size = self.rows.count * self.inputs
        moved = self.rows.of(change[self.offset : self.offset + size]).view(len(self.gram), -1, self.inputs)
        return float((torch.bmm(moved, self.gram) * moved).sum())

    def damped(self, start: int, stop: int, damping: float) -> Tensor:
        """Blocks with the damping added; the identity in padding and at inputs that are always zero."""
        blocks = super().damped(start, stop, damping + self.own)
        k = blocks.shape[1]
        live = self.live[self.groups[start:stop, None], self.columns[start:stop, :k]]
        diagonal = blocks.diagonal(dim1=1, dim2=2)
        diagonal.copy_(torch.where(live, diagonal, 1.0))
        return blocks

    def inverses(self, start: int, stop: int, damping: float) -> tuple[Tensor, Tensor]:
        """For blocks with all inputs, views of one inverse."""
        if start >= self.whole:
            damped = self.damped(start, stop, damping)
            inverses, definite = inverse(damped)
            return inverses, definite & _regular(damped, inverses)
        damping += self.own

        def invert() -> tuple[Tensor, Tensor]:
            damped = self.moments.damped(damping)
            inverses, definite = inverse(damped)
            return inverses, definite & _regular(damped, inverses)

        inverted, definite = self.moments.once(("inverse", damping), invert)
        groups = self.groups[start:stop]
        if len(inverted) == 1:
            return inverted.expand(len(groups), -1, -1), definite.expand(len(groups))
        return inverted[groups], definite[groups]

    def held(self) -> int:
        """Bytes; the one inverse of blocks with all inputs is always kept."""
        return sum(8 * size**2 for size in self.sizes[self.whole :])

    def lasts(self, start: int) -> bool:
        """Not copies of the groups' inverses, one for each block."""
        return start >= self.whole

    def pieces(self, room: int) -> Iterator[tuple[int, int]]:
        """No piece has both blocks with all inputs and others."""
        for start, stop in super().pieces(room):
            cuts = [start, self.whole, stop] if start < self.whole < stop else [start, stop]
            yield from pairwise(cuts)


class LayerBlocks(Blocks):
    """:class:`Blocks` of :class:`LayerGram` families.

    Attributes:
        live: By parameter, False at weights whose input is always zero: they cost and change nothing.
    """

    def __init__(
        self,
        statistic: str,
        shapes: Mapping[str, torch.Size],
        families: Sequence[LayerGram],
        damping: float,
        memory: int,
    ) -> None:
        super().__init__(statistic, shapes, families, damping, memory)
        self.live: dict[str, Tensor] = {}
        for name, family in zip(shapes, families, strict=True):
            live = family.live.unsqueeze(1).expand(-1, family.rows.count // len(family.gram), -1)
            self.live[name] = family.rows.back(live.reshape(family.rows.count, family.inputs))

    def family(self, layer: str) -> LayerGram:
        """That of a parameter."""
        return next(f for f in self.families if f.layer == layer)  # type: ignore[return-value]


def _regular(damped: Tensor, inverse: Tensor) -> Tensor:
    """Which matrices have an inverse that means something: a factorisation may pass by luck of rounding.

    ``H_jj [H⁻¹]_jj`` says how many times input j's part that no other input explains fits into it.
    """
    times = damped.diagonal(dim1=1, dim2=2) * inverse.diagonal(dim1=1, dim2=2)
    limit = 1 / (damped.shape[1] * torch.finfo(damped.dtype).eps)
    return ((times > 0) & (times < limit)).all(1)
