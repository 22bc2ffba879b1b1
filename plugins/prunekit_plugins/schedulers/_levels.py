"""What every scheduler with a target shares."""

from __future__ import annotations

from pydantic import Field

from prunekit import Options


class Target(Options):
    """Options of a scheduler with one target.

    Attributes:
        sparsity: κ, the fraction of the prunable weights to remove, in [0, 1).
    """

    sparsity: float = Field(ge=0, lt=1)


class Steps(Target):
    """Options of a scheduler that takes several steps to its target.

    Attributes:
        steps: π, the number of pruning steps.
    """

    steps: int = Field(default=14, ge=1, le=1_000_000)
