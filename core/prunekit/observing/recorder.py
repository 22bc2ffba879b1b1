"""Recorders: they store what happens in a run."""

from __future__ import annotations

from prunekit.component import Component
from prunekit.records import Attempt, ProbeRecord, RunView, StepRecord


class Recorder(Component):
    """Stores what happened. Every method is optional; called in the order written here."""

    kind = "recorder"

    def wants_saliencies(self, step: int) -> bool:
        """Whether ``run.saliencies`` should hold what this step's weights were chosen by; by default not."""
        return False

    def started(self, run: RunView) -> None:
        """The run starts, or is resumed after an interruption: bring the record up to ``run``."""

    def epoch_finished(self, run: RunView, phase: str) -> None:
        """A training epoch of ``phase`` is done; its row is the last of ``run.history[phase]``."""

    def phase_finished(self, run: RunView, phase: str) -> None:
        """``phase`` (``dense``, ``pruned``, ``finetuned``) is done; its metrics and weights are in ``run``."""

    def step_finished(self, run: RunView, step: StepRecord) -> None:
        """A pruning step is done."""

    def attempt_finished(self, run: RunView, attempt: Attempt) -> None:
        """An attempt of a scheduler that adapts is over, whether it stayed or not; before ``step_finished``."""

    def probe_finished(self, run: RunView, label: str, record: ProbeRecord) -> None:
        """A probe has been asked at a moment, which ``record`` names; for a step, before ``step_finished``."""

    def finished(self, run: RunView) -> None:
        """The run is over; ``run.status`` says how (complete, failed, interrupted)."""
