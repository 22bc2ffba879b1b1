"""Where blocks come from: a matrix over everything, sums of outer products, or their factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunekit_plugins._curvature.blocks import Blocks, Family


class Dense(Family):
    """One block over all kept weights.

    Args:
        matrix: ``[K, K]``, float64.
        kept: Flat indices.
    """

    def __init__(self, matrix: Tensor, kept: Tensor) -> None:
        super().__init__(None, kept.unsqueeze(0), torch.ones_like(kept, dtype=torch.bool).unsqueeze(0))
        self.matrix = matrix

    def curvature(self, start: int, stop: int) -> Tensor:
        """A copy of the matrix."""
        return self.matrix.unsqueeze(0).clone()

    def curved(self, change: Tensor) -> float:
        """``Δᵀ C Δ`` of the one block, for a change of all weights; that of pruned weights is not read."""
        part = change[self.index[0]]
        return float(part @ (self.matrix @ part))


class FullInverse(Blocks):
    """:class:`Blocks` with a single block over all kept weights.

    Attributes:
        matrix: (C + αI)⁻¹, float64.
        curvature: C, undamped, float64.
        kept: Flat indices of the kept weights, parameters one after another.
    """

    @property
    def matrix(self) -> Tensor:
        """The inverse of the damped curvature over all kept weights, ``[K, K]``."""
        return next(iter(self.chunks())).inverse[0]

    @property
    def curvature(self) -> Tensor:
        """The matrix without damping."""
        dense: Any = self.families[0]
        return dense.matrix  # type: ignore[no-any-return]

    @property
    def kept(self) -> Tensor:
        """Where the rows stand."""
        return self.families[0].index[0]


class Summed(Family):
    """Blocks that were added up.

    Args:
        layer: The parameter.
        index: See :class:`Family`.
        there: See :class:`Family`.
        sums: ``[R, k, k]`` in the same order.
    """

    def __init__(self, layer: str | None, index: Tensor, there: Tensor, sums: Tensor) -> None:
        super().__init__(layer, index, there)
        ordered = torch.arange(len(self.order), device=index.device)
        self.sums = sums if torch.equal(self.order, ordered) else sums[self.order]

    def curvature(self, start: int, stop: int) -> Tensor:
        """Copy blocks ``start`` to ``stop`` from the stored sums, as wide as the first, in float64."""
        k = self.sizes[start]
        return self.sums[start:stop, :k, :k].to(torch.float64, copy=True)


class Weighted(Family):
    """Blocks of a linear layer's units, one position per example: ``C_r = Σ_n s_nr a_n a_nᵀ``.

    The columns of the loss's factor are merged in s, so nothing of the size of the blocks is stored: a block is a
    Gram matrix, formed when it is asked for, over the examples that count for it.

    Args:
        layer: The parameter, ``[units, inputs]``.
        index: See :class:`Family`; row r belongs to unit ``units[r]``.
        there: See :class:`Family`.
        units: ``[R]``.
        inputs: a ``[N, inputs]``.
        weights: s ``[N, units]``, not negative.
        offset: Where the parameter begins among all weights.
    """

    def __init__(
        self,
        layer: str,
        index: Tensor,
        there: Tensor,
        units: Tensor,
        inputs: Tensor,
        weights: Tensor,
        offset: int,
    ) -> None:
        super().__init__(layer, index, there)
        self.units, self.inputs, self.weights, self.offset = units[self.order], inputs, weights, offset

    def curvature(self, start: int, stop: int) -> Tensor:
        """Form blocks ``start`` to ``stop``, each a Gram matrix of its unit's weighted inputs."""
        k, width = self.sizes[start], self.inputs.shape[1]
        blocks = torch.zeros(stop - start, k, k, dtype=torch.float64, device=self.inputs.device)
        energy = self.inputs.square().sum(1)
        for row in range(start, stop):
            size, s = self.sizes[row], self.weights[:, self.units[row]]
            some = _that_count(s * energy)
            columns = (self.index[row, :size] - self.offset) % width
            x = self.inputs[some]
            if size < width:
                x = x[:, columns]
            x = x * s[some].sqrt().unsqueeze(1)
            _gram(x, blocks[row - start])
        return blocks

    def curved(self, change: Tensor) -> float:
        """``Σ_r Σ_n s_nr (a_n·Δ_r)²``."""
        # A unit may have several blocks, which are then apart.
        moved = torch.zeros(len(self.index), self.inputs.shape[1], dtype=torch.float64, device=change.device)
        places = (self.index - self.offset).clamp(min=0) % self.inputs.shape[1]
        moved.scatter_add_(1, places, change[self.index].masked_fill_(~self.there, 0.0))
        along = self.inputs.double() @ moved.t()
        return float((along.square_() * self.weights[:, self.units]).sum())


def _gram(x: Tensor, out: Tensor) -> None:
    """``xᵀx``, by stripes of which only what lies below the diagonal is multiplied."""
    k = x.shape[1]
    stripe = max(64, -(-k // 6))
    for start in range(0, k, stripe):
        stop = min(k, start + stripe)
        product = x[:, start:].t() @ x[:, start:stop]
        out[start:k, start:stop] = product
        out[start:stop, stop:k] = product[stop - start :].t()


def _that_count(share: Tensor) -> Tensor:
    """The examples that make up a sum of matrices to its rounding, given their traces: few, for a trained network."""
    ordered, order = share.sort(descending=True)
    missing = ordered.double().flip(0).cumsum(0).flip(0)  # what is left out if the sum stops before
    enough = missing > torch.finfo(share.dtype).eps / 8 * missing[0]
    return order[: int(enough.count_nonzero())]


def units_first(shape: Sequence[int], output_axis: int) -> Tensor:
    """Flat positions of the weights that feed each unit, ``[units, weights]``: a layer's outputs; a bias's entries."""
    size = torch.Size(shape).numel()
    positions = torch.arange(size, device="cpu")
    if len(shape) < 2:
        return positions.unsqueeze(1)
    return positions.view(*shape).movedim(output_axis, 0).flatten(1)


def packed(index: Tensor, keep: Tensor, size: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of flat positions with what is not kept left out, cut into blocks.

    Args:
        index: ``[R, m]``.
        keep: ``[R, m]``.
        size: Largest block; ``None`` for whole rows.

    Returns:
        Positions ``[B, k]`` (0 in padding), which are there ``[B, k]``, and the row of each block ``[B]``.
        Rows without kept weights have no block.
    """
    counts = keep.sum(1)
    most = int(counts.max()) if len(counts) else 0
    order = (~keep).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
    there = keep.gather(1, order)
    positions = torch.where(there, index.gather(1, order), 0)
    width = most if size is None else min(size, most)
    if width < most:
        extra = -most % width
        positions = torch.nn.functional.pad(positions, (0, extra)).view(-1, width)
        there = torch.nn.functional.pad(there, (0, extra)).view(-1, width)
    rows = torch.arange(len(positions), device=index.device) // max(1, len(positions) // max(1, len(keep)))
    some = there.any(1)
    return positions[some], there[some], rows[some]
