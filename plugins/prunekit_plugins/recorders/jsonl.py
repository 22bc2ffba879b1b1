"""A line of JSON for each event of a run."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit import Recorder, ResultsError

if TYPE_CHECKING:
    from prunekit import Attempt, ProbeRecord, RunView, StepRecord

    Event = dict[str, Any]
    Key = tuple[object, ...]
    """What tells events apart."""

_EVENT, _STARTED = "event", "started"
_BEGINNING = b'{"event": "started"'
_PHASES = ("dense", "pruned", "finetuned")


class JSONLines(Recorder):
    """Writes ``FILE.jsonl`` beside the results file: one JSON object per line, as things happen.

    Each line is written by one call, so whoever follows the file sees whole lines. A run resumed after an
    interruption leaves the same lines as one that was never stopped, except for times: what was written ahead of the
    last boundary, an interruption's own line and the half of a line are cut off, and what is missing is added.
    """

    name = "jsonl"
    _path: Path | None = None  # none where it may not be written

    def started(self, run: RunView) -> None:
        """Start the file, or bring the one that is there up to the run.

        Raises:
            ResultsError: If what is there is not prunekit's.
        """
        path = run.out.with_name(f"{run.out.name}.jsonl")
        first = {
            _EVENT: _STARTED,
            "name": run.spec["name"],
            "spec_hash": run.spec_hash,
            "prunable": run.prunable,
            "spec": run.spec,
            "inputs": run.inputs,
            "environment": {key: value for key, value in run.environment.items() if key != "error"},
        }
        expected = [first, *_events(run)]
        kept = _kept(path, {_key(event) for event in expected}, json.loads(_line(first)), len(run.steps))
        self._path = path
        for event in expected:
            if _key(event) not in kept:
                self._append(event)

    def epoch_finished(self, run: RunView, phase: str) -> None:
        """Add the epoch's row."""
        self._append(_epoch(phase, run.history[phase][-1]))

    def phase_finished(self, run: RunView, phase: str) -> None:
        """Add the metrics."""
        self._append(_phase(run, phase))

    def attempt_finished(self, run: RunView, attempt: Attempt) -> None:
        """Add what was tried."""
        self._append(_attempt(len(run.attempts), attempt))

    def step_finished(self, run: RunView, step: StepRecord) -> None:
        """Add the step's row."""
        self._append(_step(step))

    def probe_finished(self, run: RunView, label: str, record: ProbeRecord) -> None:
        """Add the summary of what a probe found; its arrays are in the results file."""
        self._append(_probe(label, record))

    def finished(self, run: RunView) -> None:
        """Add how the run ended."""
        error = {"error": run.environment["error"]} if "error" in run.environment else {}
        self._append({_EVENT: "finished", "status": run.status, "stopped": run.stopped, **error})

    def _append(self, event: Mapping[str, object]) -> None:
        if self._path is not None:
            with self._path.open("ab", buffering=0) as file:
                file.write(_line(event))


def _kept(path: Path, expected: set[Key], first: Mapping[str, object], steps: int) -> set[Key]:
    """Cut the file off behind its last line that belongs to the run so far; which events those lines are.

    Raises:
        ResultsError: If it is not prunekit's.
    """
    if not os.path.lexists(path):
        path.open("xb").close()
        return set()
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise ResultsError(f"{path}: is not a regular file, and the recorder 'jsonl' needs this name")
    kept: set[Key] = set()
    whole = 0
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if number == 0 and not (line.startswith(_BEGINNING) or _BEGINNING.startswith(line)):
                raise ResultsError(
                    f"{path}: is not a record that prunekit wrote, and the recorder 'jsonl' needs this name; remove "
                    "it, or choose another output"
                )
            event = _read(line)
            if event is None or (number == 0 and event != first):
                break
            key = _key(event)
            # The run does not remember what probes found at earlier steps.
            earlier = event[_EVENT] == "probe" and 0 < (event.get("step") or 0) <= steps
            if key in kept or not (key in expected or earlier):
                break
            kept.add(key)
            whole += len(line)
    os.truncate(path, whole)
    return kept


def _events(run: RunView) -> Iterator[Event]:
    """All events so far, in order; of probes at steps those of the last alone, since the run has no others."""
    for phase in _PHASES:
        if phase == "pruned":
            yield from _pruning(run)
        yield from (_epoch(phase, row) for row in run.history.get(phase, []))
        if phase in run.metrics:
            yield _phase(run, phase)
        yield from (_probe(label, record) for label, record in run.probes if record.moment == phase)
    yield from (_probe(label, record) for label, record in run.probes if record.moment == "end")


def _pruning(run: RunView) -> Iterator[Event]:
    attempts = list(enumerate(run.attempts, 1))
    for step in run.steps:
        while attempts and attempts[0][1].step <= step.step:
            yield _attempt(*attempts.pop(0))
        yield from (_probe(label, record) for label, record in run.probes if record.step == step.step)
        yield _step(step)
    yield from (_attempt(number, attempt) for number, attempt in attempts)


def _epoch(phase: str, row: Mapping[str, object]) -> Event:
    return {_EVENT: "epoch", "phase": phase, **row}


def _phase(run: RunView, phase: str) -> Event:
    return {_EVENT: "phase", "phase": phase, **run.metrics[phase]}


def _attempt(number: int, attempt: Attempt) -> Event:
    data = asdict(attempt)
    target = data.pop("target")
    return {_EVENT: "attempt", "attempt": number, **data, "target_sparsity": target["sparsity"]}


def _step(step: StepRecord) -> Event:
    return {_EVENT: "step", **step}


def _probe(label: str, record: ProbeRecord) -> Event:
    return {
        _EVENT: "probe",
        "label": label,
        "probe": record.name,
        "moment": record.moment,
        "step": record.step,
        "summary": record.summary,
    }


def _key(event: Mapping[str, object]) -> Key:
    """What an event is of, so that the same one is known again."""
    names = {
        "epoch": ("phase", "epoch"),
        "phase": ("phase",),
        "attempt": ("attempt",),
        "step": ("step",),
        "probe": ("label", "moment", "step"),
    }
    kind = str(event[_EVENT])
    return (kind, *(event.get(name) for name in names.get(kind, ())))


def _line(event: Mapping[str, object]) -> bytes:
    text = json.dumps(_finite(event), ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _read(line: bytes) -> Event | None:
    """An event, or ``None`` for what is no whole one."""
    try:
        event = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get(_EVENT), str) else None


def _finite(value: object) -> object:
    """Plain data as JSON has it: what is not finite is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value.item() if hasattr(value, "item") else str(value) if isinstance(value, Path) else value
