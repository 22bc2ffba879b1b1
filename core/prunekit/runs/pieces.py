"""Pieces of probes in the state of a run: a run that is stopped in the middle of a probe goes on there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prunekit.observing.journal import Journal
from prunekit.observing.listener import Listener
from prunekit.observing.moment import Moment
from prunekit.runs.state import Noted, State

_PERIOD = 1.0
"""Seconds between two times that the state is written, at least, and ten times as long as it takes."""


@contextmanager
def noted(
    state: State, label: str, moment: Moment, save: Callable[[], None], listener: Listener
) -> Iterator[None]:
    """Keep what a probe measures meanwhile, piece by piece, and tell the listener of it.

    Those of a step are not kept: a step that was not finished is done again, with its probes.

    Args:
        state: Of the run; has the pieces that are known already.
        label: The probe's.
        moment: Where it is asked.
        save: Writes the state.
        listener: Is told of each piece.
    """
    if moment.step is not None:
        moment.journal = Journal()
        yield
        return
    last, cost = time.monotonic(), 0.0

    def told(done: int, total: int | None) -> None:
        nonlocal last, cost
        listener.piece(label, done, total)
        begun = time.monotonic()
        if begun - last > max(_PERIOD, 10 * cost):
            save()
            last = time.monotonic()
            cost = last - begun

    known = state.journal
    if known is None or (known.label, known.moment) != (label, moment.name):
        known = Noted(label, moment.name, [])
    state.journal = known
    moment.journal = Journal(known.notes, told)
    try:
        yield
    except BaseException:
        save()
        raise
    state.journal = None
