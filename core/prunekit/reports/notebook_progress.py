"""A run's progress in a notebook: a line of HTML for each phase, renewed in place, so that one output is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from prunekit.distributed import speaks
from prunekit.observing.listener import Listener
from prunekit.records import Attempt, StepRecord
from prunekit.reports.page.markup import element, shown
from prunekit.reports.progress import TITLES, Pieces, epoch_text, step_text

_EVERY = 0.2  # seconds between two pictures; a kernel that sends more makes its browser slow


@contextmanager
def following(listener: Listener | None) -> Iterator[Listener]:
    """The listener that was given; without one, in a notebook lines below the cell, and elsewhere one that is silent.

    Neither ipywidgets nor any other extension has a part in it, and IPython is not imported where it is not there.
    """
    own = None if listener is not None or not _in_notebook() else NotebookProgress(_renewed())
    try:
        yield listener or own or Listener()
    finally:
        if own is not None:
            own.finish()


def _in_notebook() -> bool:
    """Not in a script, nor in IPython in a terminal; and one process of several is enough."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None and speaks()


def _renewed() -> Callable[[str, str], None]:
    """Shows HTML, and the text for those who have none, in the place of what was shown before."""
    display = import_module("IPython.display").display
    handle: Any = None

    def show(html: str, text: str) -> None:
        nonlocal handle
        bundle = {"text/html": html, "text/plain": text}
        if handle is None:
            handle = display(bundle, raw=True, display_id=True)
        else:
            handle.update(bundle, raw=True)

    return show


@dataclass
class _Phase:
    """A line.

    Attributes:
        name: Of the phase.
        total: How much there is to do; ``None``: nobody knows.
        done: How much is done.
        text: About the last piece of it.
        back: Steps that were taken back.
    """

    name: str
    total: int | None
    done: int
    text: str = ""
    back: int = 0

    @property
    def words(self) -> str:
        count = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        back = f"  {self.back} taken back" if self.back else ""
        return f"{self.name} {count}  {self.text}{back}"

    @property
    def html(self) -> str:
        total = None if self.total is None else str(max(self.total, 1))
        known = {} if total is None else {"value": str(self.done), "max": total}
        bar = element("progress", **known) if known or not self.done else ""
        return element("div", bar, " ", shown(self.words), style="white-space: pre-wrap")


class NotebookProgress(Listener):
    """A line for each phase.

    Args:
        show: Is given all lines, as HTML and as text, at most every fifth of a second and when a phase is done.
    """

    def __init__(self, show: Callable[[str, str], None]) -> None:
        self._show = show
        self._phases: list[_Phase] = []
        self._pieces = Pieces()
        self._last = 0.0

    def phase(self, name: str, total: int | None, done: int) -> None:
        """A new line; what came before it is done, and stays as it is."""
        self._picture(now=bool(self._phases))
        if total != 0:
            self._phases.append(_Phase(TITLES[name], total, done))

    def epoch(self, phase: str, row: Mapping[str, float | None]) -> None:
        """The line moves on."""
        self._advance(epoch_text(row))

    def attempt(self, attempt: Attempt) -> None:
        """The line counts it."""
        if self._phases:
            self._phases[-1].back += 1
            self._picture()

    def step(self, record: StepRecord) -> None:
        """The line moves on."""
        self._advance(step_text(record))

    def piece(self, name: str, done: int, total: int | None) -> None:
        """The line says how far a probe is."""
        if self._phases:
            self._phases[-1].text = self._pieces.text(name, done, total)
            self._picture()

    def probe(self, name: str) -> None:
        """The line moves on."""
        self._advance(name)

    def finish(self) -> None:
        """Show what is still to be shown."""
        self._picture(now=True)

    def _advance(self, text: str) -> None:
        if not self._phases:
            return
        line = self._phases[-1]
        line.done, line.text = line.done + 1, text
        self._picture(now=line.done == line.total)

    def _picture(self, now: bool = False) -> None:
        if not self._phases or not (now or time.monotonic() - self._last >= _EVERY):
            return
        self._last = time.monotonic()
        self._show(
            element("div", *(line.html for line in self._phases)),
            "\n".join(line.words for line in self._phases),
        )
