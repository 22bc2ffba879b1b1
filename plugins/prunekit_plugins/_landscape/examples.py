"""On which examples a probe measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunekit import Moment, Split


def measured_on(moment: Moment, examples: int | None) -> Split | None:
    """The first training examples; at a step, and where there is no split, ``None``: what the moment takes itself."""
    from prunekit import StepMoment

    return None if isinstance(moment, StepMoment) else moment.split("train", examples)
