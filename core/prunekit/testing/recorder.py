"""What every recorder promises: it stores what happened, and changes nothing of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from prunekit.observing.recorder import Recorder
from prunekit.records import Attempt, ProbeRecord, RunView, Series, StepRecord, Target
from prunekit.testing import component as common
from prunekit.testing.guard import same, untouched
from prunekit.testing.verdict import Subject, demand

Under = Subject[Recorder]
Tell = Callable[[str, Callable[[], None]], None]
"""Tells a recorder of an event, which has a name."""


def follows_a_run_from_start_to_end(subject: Under) -> None:
    """Every event, in the order of a run."""
    with _run() as view:
        _follow(subject.component, view, lambda what, event: event())


def leaves_the_run_and_the_process_alone(subject: Under) -> None:
    """What it is shown is shown to others too."""
    with _run() as view:

        def tell(what: str, event: Callable[[], None]) -> None:
            before = _copy(view)
            with untouched():
                event()
            for name, value in before.items():
                demand(same(value, getattr(view, name)), f"{what}: the run's {name} was changed")

        _follow(subject.component, view, tell)


def goes_on_after_an_interruption(subject: Under) -> None:
    """Built anew by the engine, it is told to start again, with a run that is further than it knew."""
    recorder = subject.component
    rebuilt = type(recorder).from_options(recorder.options)
    with _run() as view:
        _follow(recorder, view, lambda what, event: event(), until="step_finished")
        _add_step(view)
        rebuilt.started(view)
        _add_phase(view, "pruned")
        rebuilt.phase_finished(view, "pruned")
        view.status, view.phase = "complete", "done"
        rebuilt.finished(view)


def takes_a_run_that_fails(subject: Under) -> None:
    """Right after it has started."""
    with _run() as view:
        subject.component.started(view)
        view.status = "failed"
        subject.component.finished(view)


CHECKS = (
    *common.CHECKS,
    follows_a_run_from_start_to_end,
    leaves_the_run_and_the_process_alone,
    goes_on_after_an_interruption,
    takes_a_run_that_fails,
)

_SHAPES = {"0.weight": (3, 4), "2.weight": (2, 3)}
_METRICS = ("train_loss", "valid_loss", "test_loss", "train_error", "valid_error", "test_error")


@contextmanager
def _run() -> Iterator[RunView]:
    """A run that has just started, in a folder that goes away again."""
    spec = {
        "version": 1,
        "name": "check",
        "seed": 0,
        "prune": {"criterion": {"name": "magnitude"}, "sample": "fresh", "examples": 4, "selector": {}},
        "recorders": [],
    }
    with TemporaryDirectory() as folder:
        yield RunView(
            Path(folder) / "run.h5",
            spec,
            {"name": "file", "seed": "default"},
            "name: check\n",
            {"prunekit": "0", "device": "cpu"},
            dict(_SHAPES),
            _METRICS,
        )


def _follow(recorder: Recorder, view: RunView, tell: Tell, until: str = "") -> None:
    """Tell a recorder of a small run, up to the first event of a name."""
    for what, event in _events(recorder, view):
        tell(what, event)
        if what == until:
            return


def _events(recorder: Recorder, view: RunView) -> Iterator[tuple[str, Callable[[], None]]]:
    """The events of a small run; the view is brought up to each before it is told."""
    yield "started", lambda: recorder.started(view)
    for epoch in range(2):
        row: dict[str, float | None] = {"epoch": epoch + 1, "running_loss": 1.0 - epoch / 10, "lr": None}
        view.history.setdefault("dense", []).append(row)
        yield "epoch_finished", lambda: recorder.epoch_finished(view, "dense")
    _add_phase(view, "dense")
    yield "phase_finished", lambda: recorder.phase_finished(view, "dense")
    view.phase = "prune"
    for _ in range(2):
        step = _add_step(view)
        target = Target(step.sparsity)
        view.attempts.append(Attempt(step.step, target, step.sparsity, step.pruned, 0.0, None, 0.1, {}, True))
        yield "attempt_finished", lambda: recorder.attempt_finished(view, view.attempts[-1])
        yield "step_finished", lambda: recorder.step_finished(view, view.steps[-1])
    _add_phase(view, "pruned")
    yield "phase_finished", lambda: recorder.phase_finished(view, "pruned")
    record = ProbeRecord({"end": {"loss": Series([1.0, 2.0], ("point",), "loss")}}, {"highest": 2.0})
    view.probes.append(("line", record))
    yield "probe_finished", lambda: recorder.probe_finished(view, "line", record)
    view.status, view.phase = "complete", "done"
    yield "finished", lambda: recorder.finished(view)


def _add_phase(view: RunView, name: str) -> None:
    view.metrics = {**view.metrics, name: dict.fromkeys(_METRICS, 0.5)}
    kept = view.masks or {k: np.ones(shape, dtype=bool) for k, shape in _SHAPES.items()}
    weights = {k: np.full(shape, 0.5, dtype=np.float32) * kept[k] for k, shape in _SHAPES.items()}
    view.weights = {**view.weights, name: weights}


def _add_step(view: RunView) -> StepRecord:
    number = len(view.steps) + 1
    masks = {k: np.ones(shape, dtype=bool) for k, shape in _SHAPES.items()}
    masks["0.weight"].ravel()[: 3 * number] = False
    view.masks, view.examples = masks, np.arange(4) + number
    layers = {k: float((~m).mean()) for k, m in masks.items()}
    pruned = 3 * number
    step = StepRecord(
        number, pruned / 18, pruned / 18, pruned, 18 - pruned, None, 0.1, layers, 0.5, seconds=0.1
    )
    view.steps.append(step)
    return step


def _copy(view: RunView) -> dict[str, object]:
    """All that a recorder could change."""
    return {f.name: copy.deepcopy(getattr(view, f.name)) for f in fields(view)}
