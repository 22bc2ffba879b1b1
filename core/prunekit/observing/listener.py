"""Listeners: they show a run's progress."""

from __future__ import annotations

from collections.abc import Mapping

from prunekit.records import StepRecord


class Listener:
    """Follows a run's progress, for display; every method is optional."""

    def phase(self, name: str, total: int, done: int) -> None:
        """A phase begins, ``done`` of its ``total`` epochs, steps or probes already done."""

    def message(self, text: str) -> None:
        """Something worth a line."""

    def epoch(self, phase: str, row: Mapping[str, float | None]) -> None:
        """An epoch is done."""

    def step(self, record: StepRecord) -> None:
        """A pruning step is done."""

    def probe(self, name: str) -> None:
        """A probe is done."""
