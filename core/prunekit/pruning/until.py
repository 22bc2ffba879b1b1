"""Prune as far as a metric holds: a limit laid around any scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from pydantic import Field

from prunekit.component import Options
from prunekit.pruning.scheduler import Scheduler
from prunekit.records import Attempt, Stop, Target

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.observing.moment import StepMoment
    from prunekit.pruning.criterion import Criterion

Metric: TypeAlias = "Callable[[Mapping[str, Tensor]], float]"
"""A metric of the network with other parameters and buffers than its own."""

KEY = "until"
"""Under which an attempt holds the metric: ``value`` after it, ``start`` before the first step."""


class Until(Options):
    """How far a metric may rise.

    Attributes:
        metric: ``train_loss``, ``valid_loss``, ``test_loss`` or the same with ``_error``.
        rise: By how much it may be above its value before the first step.
        relative: Whether the rise is a fraction of that value rather than in the metric's units.
        bisect: How many times the step that broke the limit is tried again, each time halfway between what held and what
            broke.
    """

    metric: str = Field(pattern=r"^(train|valid|test)_(loss|error)$")
    rise: float = Field(ge=0)
    relative: bool = False
    bisect: int = Field(default=0, ge=0)

    def limit(self, start: float) -> float:
        """The most that the metric may be, given its value before the first step."""
        return start + self.rise * (abs(start) if self.relative else 1.0)


class Limited(Scheduler):
    """Another scheduler, stopped where a metric has risen too far.

    The step that breaks the limit is taken back. What the other scheduler takes back by itself it sees as it would alone.

    Args:
        inner: The scheduler.
        until: The limit.
    """

    def __init__(self, inner: Scheduler, until: Until) -> None:
        self.inner, self.until = inner, until
        self.options = inner.options

    def needed(self, criterion: Criterion, fresh: bool) -> frozenset[str]:
        """What the scheduler inside needs; the metric is the engine's business."""
        return self.inner.needed(criterion, fresh)

    def levels(self) -> Sequence[float]:
        """Those of the scheduler inside, as far as the metric holds."""
        return self.inner.levels()

    def planned(self) -> Sequence[float]:
        """Those of the scheduler inside."""
        return self.inner.planned()

    def next(self, history: Sequence[Attempt]) -> Target | None:
        """What the scheduler inside asks for; once a step has broken the limit, places before that one."""
        first = self._first_broken(history)
        if first is None:
            return self.inner.next(history)
        if len(history) - first > self.until.bisect:
            return None
        held = max((a.pruned for a in history if a.accepted), default=0)
        broken = min(a.pruned for a in history[first:] if not a.accepted)
        if broken - held < 2:  # weights: there is nothing between
            return None
        total = round(history[first].pruned / history[first].sparsity)
        return replace(history[first].target, sparsity=(held + broken) // 2 / total)

    def accept(self, attempt: Attempt, history: Sequence[Attempt]) -> bool:
        """Whether the metric holds, and the scheduler inside would keep the step."""
        if self._first_broken(history) is None and not self.inner.accept(attempt, history):
            return False
        return self._holds(attempt)

    def stopped(self, history: Sequence[Attempt]) -> Stop | None:
        """Which limit was met and how far it went; else how much of the rise is left."""
        first = self._first_broken(history)
        if first is None:
            stop = self.inner.stopped(history)
            if (stop is not None and stop.short) or not history:
                return stop
            last = [a for a in history if a.accepted]
            return Stop(
                f"the scheduler's end, with {self._rise(last[-1])}" if last else "the scheduler's end"
            )
        kept = [a for a in history if a.accepted]
        broken = min((a for a in history[first:] if not a.accepted), key=lambda a: a.pruned)
        at = f"{self._rise(broken)} at sparsity {broken.sparsity:.6g}, which was taken back"
        so_far = f"; {self._rise(kept[-1])} at {kept[-1].sparsity:.6g}" if kept else ""
        return Stop(f"until: {at}{so_far}")

    def _first_broken(self, history: Sequence[Attempt]) -> int | None:
        """Which attempt was the first to break the limit, and not taken back by the scheduler inside."""
        for i, attempt in enumerate(history):
            if (
                not attempt.accepted
                and not self._holds(attempt)
                and self.inner.accept(replace(attempt, accepted=False), history[:i])
            ):
                return i
        return None

    def _holds(self, attempt: Attempt) -> bool:
        found = attempt.measured[KEY]
        return math.isfinite(attempt.delta_loss) and found["value"] <= self.until.limit(found["start"])

    def _rise(self, attempt: Attempt) -> str:
        found = attempt.measured[KEY]
        allowed = self.until.limit(found["start"]) - found["start"]
        rise = found["value"] - found["start"]
        return f"{self.until.metric} {found['value']:.6g}, {rise:+.4g} of {allowed:.4g} allowed"


def limited(inner: Scheduler, until: Until) -> Scheduler:
    """A scheduler that stops where the limit is met, under the name that it has without."""
    own = type(Limited.__name__, (Limited,), {"name": inner.name})
    scheduler: Scheduler = own(inner, until)
    return scheduler


def watch(metric: Metric, start: Callable[[], float]) -> Callable[[StepMoment, int], Mapping[str, float]]:
    """Measures the metric of proposals, under :data:`KEY` in ``attempt.measured``.

    Args:
        metric: Its value at parameters and buffers.
        start: Its value before the first step.
    """

    def measure(moment: StepMoment, attempt: int) -> dict[str, float]:
        return {"value": metric(moment.after()), "start": start()}

    return measure
