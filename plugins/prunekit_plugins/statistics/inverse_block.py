"""The inverse of blocks of neighbouring weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from prunekit import UnsupportedError
from prunekit.units import memory_option, readable_bytes
from prunekit_plugins._curvature.cost import cost_notice
from prunekit_plugins._curvature.options import InverseOptions
from prunekit_plugins._curvature.summed_blocks import SummedBlocks, refuse_large_blocks

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.masks import Layer
    from prunekit_plugins._curvature.block_sums import Places


class BlockOptions(InverseOptions):
    """Options of ``inverse_full``, and the blocks' size.

    Attributes:
        size: Kept weights in a block; the last of a parameter may have fewer.
    """

    size: int = Field(default=128, ge=1)


class InverseBlock(SummedBlocks):
    """(C + αI)⁻¹ with C taken block by block: runs of ``size`` kept weights of a parameter, in its order.

    Curvature between blocks is taken to be zero. With ``curvature: empirical_fisher`` this is WoodFisher's
    approximation; its recursion of Sherman and Morrison, one gradient after another, gives the same inverse.
    Reference: Singh & Alistarh (2020), section 3.

    Cost: memory for K · size numbers of K kept weights in the weights' dtype; K · size operations for each example
    and column, and K · size² for the inverses, which are recomputed when asked for unless half of the memory
    budget holds them.
    """

    name = "inverse_block"
    Options = BlockOptions
    options: BlockOptions

    def check(self, layers: Sequence[Layer], memory: int) -> str | None:
        """Refuse blocks that do not fit."""
        widths = {layer.name: min(self.options.size, layer.size) for layer in layers}
        refuse_large_blocks(self.name, max(widths.items(), key=lambda item: item[1]), memory)
        weights = sum(layer.size for layer in layers)
        needed = 4 * sum(layer.size * widths[layer.name] for layer in layers)
        if needed > memory:
            raise UnsupportedError(
                f"inverse_block: {weights:,} weights in blocks of {self.options.size} take {readable_bytes(needed)} in "
                f"float32 and about {weights * self.options.size**2 / 8e9:,.0f} s per inverse; the memory budget is "
                f"{readable_bytes(memory)}. Raise it (memory: {memory_option(needed)}), or use smaller blocks "
                f"(size: {max(1, memory * 9 // (40 * weights))} fits)"
            )
        return cost_notice(self.name, needed, sum(layer.size * widths[layer.name] ** 2 for layer in layers))

    def blocks(self, layer: Layer, keep: Tensor) -> Places:
        """Runs of kept weights."""
        import torch

        from prunekit_plugins._curvature.block_sums import Places

        kept = keep.flatten().nonzero().squeeze(1)
        width = min(self.options.size, max(1, len(kept)))
        extra = -len(kept) % width
        index = torch.nn.functional.pad(kept, (0, extra)).view(-1, width)
        there = torch.ones_like(kept, dtype=torch.bool)
        there = torch.nn.functional.pad(there, (0, extra)).view(-1, width)
        return Places(index, there, torch.zeros(len(index), dtype=torch.long, device=index.device))
