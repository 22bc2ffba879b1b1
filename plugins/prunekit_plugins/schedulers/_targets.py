"""What every scheduler with a target shares."""

from __future__ import annotations

from abc import abstractmethod

from pydantic import Field

from prunekit import Options, Scheduler


class TargetOptions(Options):
    """Options of a scheduler with one target.

    Attributes:
        sparsity: κ, the fraction of the prunable weights to remove, in [0, 1).
    """

    sparsity: float = Field(ge=0, lt=1)


class StepsOptions(TargetOptions):
    """Options of a scheduler that takes several steps to its target.

    Attributes:
        steps: π, the number of pruning steps.
    """

    steps: int = Field(default=14, ge=1, le=1_000_000)


class Curve(Scheduler):
    """π levels on a curve from 0 to κ; a subclass says which."""

    Options = StepsOptions

    @abstractmethod
    def level(self, target: float, step: int, steps: int) -> float:
        """The sparsity after so many of the steps."""

    def levels(self) -> list[float]:
        """The levels κ₁ … κ_π; the last is the target itself, untouched by rounding."""
        target, steps = self.options.sparsity, self.options.steps
        return [self.level(target, i, steps) for i in range(1, steps)] + [target]
