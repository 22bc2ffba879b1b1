"""Optimal Brain Surgeon with curvature in blocks of neighbouring weights."""

from __future__ import annotations

from pydantic import Field

from prunekit_plugins.criteria._surgeon import BlockSurgeonOptions, Surgeon


class BlockSurgeonSizeOptions(BlockSurgeonOptions):
    """Options.

    Attributes:
        size: Kept weights in a block.
    """

    size: int = Field(default=128, ge=1)


class BlockSurgeon(Surgeon):
    """``obs`` with H taken in blocks of ``size`` neighbouring weights, zero between blocks.

    For networks of millions of weights. With ``curvature: empirical_fisher`` and ``selection: saliency`` its masks are
    WoodFisher's, with ``gradient: true`` WoodTaylor's in blocks. Its update is the joint minimum, all that go taken
    together; WoodFisher adds up the updates of single removals, as if each went alone. Reference: Singh & Alistarh
    (2020).
    """

    name = "obs_block"
    statistic = "inverse_block"
    Options = BlockSurgeonSizeOptions
    options: BlockSurgeonSizeOptions

    def inverse_options(self) -> dict[str, str | int | None]:
        """With the blocks' size."""
        return {**super().inverse_options(), "size": self.options.size}
