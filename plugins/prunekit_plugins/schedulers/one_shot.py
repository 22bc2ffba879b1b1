"""Everything that is to go goes at once, in a single step."""

from __future__ import annotations

from pydantic import Field

from prunekit import Scheduler
from prunekit_plugins.schedulers._targets import TargetOptions


class OneShot(Scheduler):
    """κ₁ = κ: the only step goes straight to the target."""

    name = "one_shot"

    class Options(TargetOptions):
        """Options.

        Attributes:
            steps: Only 1, so that every scheduler can be given a number of steps.
        """

        steps: int = Field(default=1, ge=1, le=1)

    def levels(self) -> list[float]:
        """The levels κ₁ … κ_π; the last is the target itself, untouched by rounding."""
        return [self.options.sparsity]
