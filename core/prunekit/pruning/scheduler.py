"""Schedulers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from prunekit.component import Component


class Scheduler(Component, ABC):
    """Decides the sparsity levels κ₁ ≤ … ≤ κ_π, each in [0, 1)."""

    kind = "scheduler"

    @abstractmethod
    def levels(self) -> Sequence[float]:
        """Return the whole schedule."""


def check_levels(levels: Any) -> list[float]:
    """A schedule's levels as floats.

    Raises:
        ValueError: Unless there is one at least, each lies in [0, 1) and none is below the one before.
    """
    values = [float(level) for level in levels]
    if not values:
        raise ValueError("the schedule has no levels")
    for level in values:
        if not 0 <= level < 1:
            raise ValueError(f"sparsity {level} is outside [0, 1)")
    for before, after in pairwise(values):
        if after < before:
            raise ValueError(f"the schedule goes backwards, from {before} to {after}")
    return values
