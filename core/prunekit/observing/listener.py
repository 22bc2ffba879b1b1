"""Listeners: they show a run's progress."""

from __future__ import annotations

from collections.abc import Mapping

from prunekit.records import Attempt, StepRecord


class Listener:
    """Follows a run's progress, for display; every method is optional."""

    def phase(self, name: str, total: int | None, done: int) -> None:
        """A phase begins, ``done`` of its ``total`` epochs, steps or probes already done; ``None``: nobody knows."""

    def message(self, text: str) -> None:
        """Something worth a line."""

    def epoch(self, phase: str, row: Mapping[str, float | None]) -> None:
        """An epoch is done."""

    def attempt(self, attempt: Attempt) -> None:
        """A step has been taken back."""

    def step(self, record: StepRecord) -> None:
        """A pruning step is done."""

    def piece(self, name: str, done: int, total: int | None) -> None:
        """A piece of a probe is done, the ``done``-th of ``total``; ``None``: nobody knows."""

    def probe(self, name: str) -> None:
        """A probe is done."""
