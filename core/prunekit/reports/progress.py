"""A run's progress in words, the same on a terminal, in a log and in a notebook."""

from __future__ import annotations

import time
from collections.abc import Mapping

from prunekit.records import Attempt, StepRecord
from prunekit.reports.words import number, percent

TITLES = {"train": "train", "prune": "prune", "finetune": "fine-tune", "probes": "probes"}


def epoch_text(row: Mapping[str, float | None]) -> str:
    """Losses of an epoch."""
    text = f"running loss {number(row.get('running_loss'))}"
    if row.get("valid_loss") is not None:
        text += f"  valid loss {number(row['valid_loss'])}"
    if row.get("valid_error") is not None:
        text += f"  valid error {percent(row['valid_error'])}"
    return text


def step_text(step: StepRecord) -> str:
    """Where a step has led, at what cost."""
    text = f"sparsity {percent(step.sparsity, 3)}"
    if step.train_loss is not None:
        text += f"  train loss {number(step.train_loss)}"
    text += f"  Δloss {number(step.delta_loss)}"
    if step.predicted_delta_loss is not None:
        text += f" (predicted {number(step.predicted_delta_loss)})"
    return text


def attempt_text(attempt: Attempt) -> str:
    """A step that did not stay."""
    text = f"step {attempt.step} to sparsity {percent(attempt.sparsity, 3)} taken back"
    text += f": Δloss {number(attempt.delta_loss)}"
    if attempt.predicted_delta_loss is not None:
        text += f" (predicted {number(attempt.predicted_delta_loss)})"
    return text


class Pieces:
    """How far a probe is, and how long it will take from the pace of its pieces."""

    def __init__(self) -> None:
        self._name, self._since, self._first = "", 0.0, 0

    def text(self, name: str, done: int, total: int | None) -> str:
        """Of the piece that is done."""
        now = time.monotonic()
        if self._name != name or done <= self._first:
            self._name, self._since, self._first = name, now, done
        if total is None:
            return f"{name} {done}"
        pace = (now - self._since) / max(1, done - self._first)
        return f"{name} {done}/{total}" + (
            f"  {pace * max(0, total - done):.0f} s left" if done > self._first else ""
        )
