"""The ``sequential`` mapping of a spec: pruning block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from prunekit.component import Options
from prunekit.masks.settings import AUTO


class Sequential(Options):
    """Prunes a network block by block, so that only one block's statistics and activations are held at a time.

    Attributes:
        blocks: Name patterns of modules that run one after another (``model.layers.*``); ``auto`` = the blocks of a
            transformer.
        inputs: ``pruned``: a block sees the outputs of the pruned blocks before it, as SparseGPT, Wanda and ALPS were
            published; all steps of a block come before the next block. ``dense``: it sees what it saw before the step, so
            that the masks are the same as without blocks.
        offload: Where activations between blocks, and weights that can be taken back, are kept: on their own device, in the
            CPU's memory, or in files of the system's temporary folder. No result depends on it.
    """

    blocks: str | tuple[str, ...] = AUTO
    inputs: Literal["pruned", "dense"] = "pruned"
    offload: Literal["none", "cpu", "disk"] = "none"

    @property
    def patterns(self) -> Sequence[str]:
        """All of them."""
        return (self.blocks,) if isinstance(self.blocks, str) else self.blocks
