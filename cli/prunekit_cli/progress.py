"""Progress on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from prunekit.observing.listener import Listener
from prunekit.records import Attempt, StepRecord
from prunekit.reports.progress import TITLES, Pieces, attempt_text, epoch_text, step_text
from prunekit.visible import visible_name
from prunekit_cli import signals


class RichProgress(Listener):
    """One live line per phase."""

    def __init__(self, screen: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:>9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=screen,
        )
        self._task: TaskID | None = None
        self._pieces = Pieces()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def phase(self, name: str, total: int | None, done: int) -> None:
        """Start the phase's line."""
        if total != 0:
            self._task = self._progress.add_task(TITLES[name], total=total, completed=done, text="")

    def message(self, text: str) -> None:
        """Print above the live line."""
        self._progress.console.print(text)

    def epoch(self, phase: str, row: Mapping[str, float | None]) -> None:
        """Move the live line on by an epoch, and show its losses there."""
        signals.check()
        self._advance(epoch_text(row))

    def attempt(self, attempt: Attempt) -> None:
        """Print above the live line."""
        signals.check()
        self._progress.console.print(attempt_text(attempt))

    def step(self, record: StepRecord) -> None:
        """Move the live line on by a pruning step, and show its sparsity and losses there."""
        signals.check()
        self._advance(step_text(record))

    def piece(self, name: str, done: int, total: int | None) -> None:
        """Show on the live line how far a probe is."""
        signals.check()
        if self._task is not None:
            self._progress.update(self._task, text=visible_name(self._pieces.text(name, done, total)))

    def probe(self, name: str) -> None:
        """Move the live line on by a probe, and show its name there."""
        signals.check()
        self._advance(name)

    def _advance(self, text: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, advance=1, text=visible_name(text))


class PlainProgress(Listener):
    """Lines for a log: every step, and an epoch every few seconds."""

    def __init__(self, screen: Console, every: float = 5.0) -> None:
        self._screen = screen
        self._every = every
        self._total: int | None = 0
        self._done = 0
        self._last = 0.0
        self._name = ""
        self._pieces = Pieces()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def phase(self, name: str, total: int | None, done: int) -> None:
        """Remember the phase's name, its length and when it began, for the lines to come."""
        self._name, self._total, self._done = TITLES[name], total, done
        self._started, self._first = time.monotonic(), done

    def message(self, text: str) -> None:
        """Print the text on a line of its own."""
        self._screen.print(text)

    def epoch(self, phase: str, row: Mapping[str, float | None]) -> None:
        """Print, but not too often; always the last."""
        signals.check()
        self._done += 1
        now = time.monotonic()
        if now - self._last >= self._every or self._done == self._total:
            self._last = now
            self._print(epoch_text(row))

    def attempt(self, attempt: Attempt) -> None:
        """Print a line for a pruning step that was taken back."""
        signals.check()
        self._screen.print(f"{self._name}  {attempt_text(attempt)}")

    def step(self, record: StepRecord) -> None:
        """Print a line for a pruning step that is done."""
        signals.check()
        self._done += 1
        self._print(step_text(record))

    def piece(self, name: str, done: int, total: int | None) -> None:
        """Print how far a probe is, but not too often, with the time left where it has said how long it is."""
        signals.check()
        text, now = self._pieces.text(name, done, total), time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            self._screen.print(f"  {text}")

    def probe(self, name: str) -> None:
        """Print a line for a probe that is done."""
        signals.check()
        self._done += 1
        self._print(name)

    def _print(self, text: str) -> None:
        if self._total is None:
            self._screen.print(f"{self._name} {self._done}  {text}")
            return
        pace = (time.monotonic() - self._started) / max(1, self._done - self._first)
        left = pace * (self._total - self._done)
        self._screen.print(f"{self._name} {self._done}/{self._total}  {text}  {left:.0f} s left")
