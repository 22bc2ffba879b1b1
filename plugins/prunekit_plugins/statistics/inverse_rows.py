"""The inverse of the curvature of all weights that feed one unit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from prunekit_plugins._curvature.cost import cost_notice
from prunekit_plugins._curvature.options import InverseOptions
from prunekit_plugins._curvature.summed_blocks import SummedBlocks, refuse_large_blocks

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.masks import Layer
    from prunekit.statistics import ForwardPass, Problem
    from prunekit_plugins._curvature.block_families import Weighted
    from prunekit_plugins._curvature.blocks import Family


class RowOptions(InverseOptions):
    """Options of ``inverse_full``, and a limit to the blocks.

    Attributes:
        size: Most kept weights of a block; rows with more are cut. ``None`` for whole rows.
    """

    size: int | None = Field(default=None, ge=1)


class InverseRows(SummedBlocks):
    """(C + αI)⁻¹ with C taken row by row: the exact curvature among all kept weights that feed one unit.

    A unit is an output of a linear layer or an output channel of a convolution. Curvature between units is taken to
    be zero. Where a linear layer sees one position per example, the block is the Gram matrix
    mean_n (Σ_c g²_cnr) a_n a_nᵀ: the classes merge before the product, and only a and Σ_c g² are stored. With several
    positions t (tokens, output pixels) it is mean_n Σ_c u uᵀ with u = Σ_t g_cntr a_nt, which is added up.

    Cost, one position: memory N · (inputs + units) numbers for N examples; for each inverse of a unit with k kept
    weights up to N · k² operations for the Gram matrix and k³. Several positions: memory units · k² numbers, and
    units · k² operations per example and column.
    """

    name = "inverse_rows"
    Options = RowOptions

    def check(self, layers: Sequence[Layer], memory: int) -> str | None:
        """Refuse rows that cannot be inverted."""

        def row(layer: Layer) -> int:
            whole = layer.size // layer.shape[1 - layer.input_axis] if len(layer.shape) > 1 else 1
            return min(whole, self.options.size or whole)

        largest = max(layers, key=row)
        refuse_large_blocks(self.name, (largest.name, row(largest)), memory)
        kept = min(memory // 2, sum(8 * layer.size * row(layer) for layer in layers))
        return cost_notice(
            self.name, kept + 8 * 6 * row(largest) ** 2, sum(layer.size * row(layer) ** 2 for layer in layers)
        )

    def blocks(self, shape: Sequence[int], keep: Tensor, input_axis: int) -> tuple[Tensor, Tensor, Tensor]:
        """Kept weights of each unit."""
        from prunekit_plugins._curvature.block_families import packed, units_first

        index = units_first(shape, input_axis).to(keep.device)
        return packed(index, keep.flatten()[index], self.options.size)

    def start(self, problem: Problem) -> None:
        """Lay out the blocks."""
        super().start(problem)
        self._factors: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(self, batch: ForwardPass) -> None:
        """Add the batch: factors where the columns merge, outer products elsewhere."""
        self._merging: dict[str, tuple[Tensor, Tensor]] = {}
        super().add(batch)
        for name, pair in self._merging.items():
            self._factors.setdefault(name, []).append(pair)
        held = sum(t.nbytes for parts in self._factors.values() for pair in parts for t in pair)
        if held > self._problem.memory // 2:
            for name in list(self._factors):
                self._sum_up(name)

    def add_factors(self, name: str, inputs: Tensor, returned: Tensor) -> None:
        """Merge the columns of an example."""
        if name in self._merging:
            self._merging[name][1].addcmul_(returned, returned)
        else:
            self._merging[name] = inputs, returned.square()

    def families(self) -> Iterator[Family]:
        """Factors and sums."""
        for name in self._factors:
            yield self._weighted(name)
        yield from super().families()

    def merged(self, name: str) -> bool:
        """Those with factors."""
        return name in self._factors

    def divide(self, normaliser: float) -> None:
        """Divide."""
        for name in set(self._factors) & set(self._sums):  # tokens: one in some batches, several in others
            self._sum_up(name)
        super().divide(normaliser)
        for parts in self._factors.values():
            for _, weights in parts:
                weights.div_(normaliser)

    def _weighted(self, name: str) -> Weighted:
        import torch

        from prunekit_plugins._curvature.block_families import Weighted

        index, there, units = self._blocks[name]
        inputs, weights = (torch.cat(parts) for parts in zip(*self._factors[name], strict=True))
        offset = self._offsets[name]
        return Weighted(name, index + offset, there, units, inputs, weights, offset)

    def _sum_up(self, name: str) -> None:
        """Form the Gram matrices of the factors so far, and forget these."""
        family = self._weighted(name)
        del self._factors[name]
        sums = self.room(name)
        for row in range(len(family.sizes)):
            k = family.sizes[row]
            sums[family.order[row], :k, :k] += family.curvature(row, row + 1)[0].to(sums.dtype)
