"""Optimal Brain Surgeon with the exact curvature among the weights that feed one unit."""

from __future__ import annotations

from pydantic import Field

from prunekit_plugins.criteria._surgeon import BlockSurgeonOptions, Surgeon


class RowSurgeonOptions(BlockSurgeonOptions):
    """Options.

    Attributes:
        size: Maximum number of weights in a block; longer rows are cut. ``null`` = whole rows.
    """

    size: int | None = Field(default=None, ge=1)


class RowSurgeon(Surgeon):
    """``obs`` with H taken unit by unit: exact within all weights that feed a unit, zero between units.

    For layers of up to a few thousand inputs; a step's greedy elimination takes the cheapest next weight over all
    units. See the statistic ``inverse_rows``.
    """

    name = "obs_rows"
    statistic = "inverse_rows"
    Options = RowSurgeonOptions
    options: RowSurgeonOptions

    def inverse_options(self) -> dict[str, str | int | None]:
        """With the blocks' limit."""
        return {**super().inverse_options(), "size": self.options.size}
