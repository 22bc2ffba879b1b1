"""Schedulers: a fixed sequence of levels, or one that answers to what the steps did."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from prunekit.component import Component
from prunekit.records import Attempt, Stop, Target

if TYPE_CHECKING:
    from prunekit.pruning.criterion import Criterion


class Scheduler(Component, ABC):
    """Decides how far each step goes.

    A fixed schedule defines :meth:`levels`. One that adapts defines :meth:`next` and :meth:`accept`, pure functions of
    the attempts so far: nothing may be remembered between calls, so that a resumed run decides the same.
    """

    kind = "scheduler"
    needs: ClassVar[frozenset[str]] = frozenset()
    """Probes that measure every proposal before it is applied; their summaries are in ``attempt.measured``."""

    def needed(self, criterion: Criterion, fresh: bool) -> frozenset[str]:
        """The probes needed with this criterion, asked before anything is computed; :attr:`needs`, unless overridden.

        Args:
            criterion: The one that proposes.
            fresh: Whether there are examples besides those of a step, for the probe ``fresh``.

        Raises:
            SpecError: If the scheduler cannot work with such a criterion, or without such examples.
        """
        return self.needs

    def levels(self) -> Sequence[float]:
        """The whole schedule κ₁ ≤ … ≤ κ_π, each in [0, 1)."""
        raise NotImplementedError

    def planned(self) -> Sequence[float]:
        """The levels that are known beforehand, in order, so that an impossible schedule is rejected early."""
        return () if self.adapts else self.levels()

    def next(self, history: Sequence[Attempt]) -> Target | None:
        """What to attempt next, or ``None`` when the target is reached.

        Args:
            history: All attempts before, accepted or not, in order.
        """
        levels = self.levels()
        done = sum(attempt.accepted for attempt in history)
        return Target(levels[done]) if done < len(levels) else None

    def accept(self, attempt: Attempt, history: Sequence[Attempt]) -> bool:
        """Whether a step that has been applied and measured stays; if not, it is taken back bit for bit.

        Args:
            attempt: With what was predicted and measured, which may not be finite; an attempt whose measured change
                is not finite cannot stay.
            history: All attempts before it.
        """
        return True

    def stopped(self, history: Sequence[Attempt]) -> Stop | None:
        """Why :meth:`next` asks for nothing more, if there is something to say; ``None``: the target is reached.

        Args:
            history: All attempts; a pure function of them, too.
        """
        return None

    @property
    def adapts(self) -> bool:
        """Whether steps depend on the outcome of earlier ones."""
        return type(self).next is not Scheduler.next or type(self).accept is not Scheduler.accept


def check_levels(levels: Iterable[float]) -> list[float]:
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
