"""The inverse of the curvature of all weights that feed one unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from prunekit import UnsupportedError
from prunekit_plugins._curvature.cost import cost_notice
from prunekit_plugins._curvature.options import InverseOptions
from prunekit_plugins._curvature.summed_blocks import SummedBlocks, refuse_large_blocks

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.masks import Layer
    from prunekit_plugins._curvature.block_sums import Places


class RowOptions(InverseOptions):
    """Options of ``inverse_full``, and a limit to the blocks.

    Attributes:
        size: Maximum number of kept weights in a block; longer rows are cut. ``null`` = whole rows.
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
    options: RowOptions
    by_unit = True

    def check(self, layers: Sequence[Layer], memory: int) -> str | None:
        """Refuse weights of which it is not known what feeds a unit, and rows that cannot be inverted."""

        def row(layer: Layer) -> int:
            whole = layer.size // layer.shape[_outputs(layer)] if len(layer.shape) > 1 else 1
            return min(whole, self.options.size or whole)

        largest = max(layers, key=row)
        refuse_large_blocks(self.name, (largest.name, row(largest)), memory)
        kept = min(memory // 2, sum(8 * layer.size * row(layer) for layer in layers))
        return cost_notice(
            self.name, kept + 8 * 6 * row(largest) ** 2, sum(layer.size * row(layer) ** 2 for layer in layers)
        )

    def blocks(self, layer: Layer, keep: Tensor) -> Places:
        """Kept weights of each unit."""
        from prunekit_plugins._curvature.block_families import packed, units_first
        from prunekit_plugins._curvature.block_sums import Places

        outputs = _outputs(layer) if len(layer.shape) > 1 else 0
        index = units_first(layer.shape, outputs).to(keep.device)
        return Places(*packed(index, keep.flatten()[index], self.options.size))


def _outputs(layer: Layer) -> int:
    """The axis of a layer's units."""
    if {layer.input_axis, layer.output_axis} != {0, 1} or layer.output_axis is None:
        raise UnsupportedError(
            f"inverse_rows: {layer.name} is not known to be one matrix or kernel with its inputs on one axis and its "
            "outputs on the other, as linear and convolution layers have it; exclude it (prunable), or choose another "
            "criterion"
        )
    return layer.output_axis
