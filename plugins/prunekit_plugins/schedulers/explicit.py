"""Levels that the spec writes out one by one."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, field_validator

from prunekit import Options, Scheduler


class Levels(Options):
    """Options.

    Attributes:
        levels: Sparsities, each in [0, 1), none below the one before.
    """

    levels: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(min_length=1)

    @field_validator("levels")
    @classmethod
    def _rises(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        for before, after in pairwise(levels):
            if after < before:
                raise ValueError(
                    f"the schedule goes backwards, from {before} to {after}; "
                    "levels must not fall, since a pruned weight stays pruned"
                )
        return levels


class Explicit(Scheduler):
    """The levels given, in order."""

    name = "explicit"

    Options = Levels

    def levels(self) -> list[float]:
        """The levels as written."""
        return list(self.options.levels)
