"""Probes that work at steps only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunekit import Moment, StepMoment


def at_step(moment: Moment, name: str) -> StepMoment:
    """The moment, which must be that of a step.

    Raises:
        SpecError: If it is another, naming the probe.
    """
    from prunekit import SpecError, StepMoment

    if not isinstance(moment, StepMoment):
        raise SpecError(
            f"probe {name!r} measures what a step does, but was asked at {moment.name!r}; accepted: moments: step, or "
            "{every: n} for every n-th step"
        )
    return moment
