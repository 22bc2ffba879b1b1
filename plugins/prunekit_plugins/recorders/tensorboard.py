"""Curves of a run for TensorBoard, while it goes on; local files only."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit import Recorder, ResultsError, SpecError

if TYPE_CHECKING:
    from prunekit import ProbeRecord, RunView, StepRecord

_MARK = "written-by-prunekit"
_CURVES = {
    "sparsity": "sparsity",
    "delta_loss": "change of the loss/measured",
    "predicted_delta_loss": "change of the loss/predicted",
    "seconds": "seconds",
}


class TensorBoard(Recorder):
    """Writes the folder ``FILE.tensorboard`` beside the results file: epochs, steps, layers, numbers of probes.

    ``tensorboard --logdir FOLDER`` shows all runs under a folder. A run resumed after an interruption writes its curves
    again, from all that it knows; what probes found at earlier steps is not included.
    """

    name = "tensorboard"
    _writer: Any = None

    def started(self, run: RunView) -> None:
        """Write what there is so far.

        Raises:
            SpecError: If TensorBoard is not installed.
            ResultsError: If the folder is there and not prunekit's.
        """
        if find_spec("tensorboard") is None:
            raise SpecError(
                "recorders: tensorboard: the package is not installed; pip install 'prunekit[tensorboard]', or leave it out"
            )
        folder = run.out.with_name(f"{run.out.name}.tensorboard")
        _make_room(folder)
        self._writer = import_module("torch.utils.tensorboard").SummaryWriter(str(folder))
        for phase in ("dense", "finetuned"):
            for row in run.history.get(phase, []):
                self._epoch(phase, row)
        for step in run.steps:
            self._step(step)
        for phase in run.metrics:
            self.phase_finished(run, phase)
        for label, record in run.probes:
            self._probe(label, record)
        self._writer.flush()

    def epoch_finished(self, run: RunView, phase: str) -> None:
        """Add the epoch's losses."""
        self._epoch(phase, run.history[phase][-1])
        self._writer.flush()

    def phase_finished(self, run: RunView, phase: str) -> None:
        """Add the metrics, where the steps end: those of the dense network at step 0."""
        at = 0 if phase == "dense" else len(run.steps)
        for name, value in run.metrics[phase].items():
            self._add(f"{_group(name)}/{_split(name)}, {phase.replace('finetuned', 'fine-tuned')}", value, at)
        self._writer.flush()

    def step_finished(self, run: RunView, step: StepRecord) -> None:
        """Add the step's numbers."""
        self._step(step)
        self._writer.flush()

    def probe_finished(self, run: RunView, label: str, record: ProbeRecord) -> None:
        """Add the numbers of what a probe found, at a step."""
        self._probe(label, record)
        self._writer.flush()

    def finished(self, run: RunView) -> None:
        """Close the file."""
        self._writer.close()

    def _epoch(self, phase: str, row: Mapping[str, float | None]) -> None:
        for name, value in row.items():
            if name != "epoch":
                self._add(
                    f"training, {phase.replace('finetuned', 'fine-tuning')}/{name}",
                    value,
                    int(row["epoch"] or 0),
                )

    def _step(self, step: StepRecord) -> None:
        for name, tag in _CURVES.items():
            self._add(tag, step[name], step.step)
        for split in ("train", "valid", "test"):
            for kind in ("loss", "error"):
                self._add(f"{kind}/{split}", step[f"{split}_{kind}"], step.step)
        for layer, sparsity in step.layers.items():
            self._add(f"sparsity of layers/{layer}", sparsity, step.step)

    def _probe(self, label: str, record: ProbeRecord) -> None:
        if record.step is not None:
            for path, value in _numbers(record.summary, (label,)):
                self._add(path, value, record.step)

    def _add(self, tag: str, value: float | None, step: int) -> None:
        if value is not None and isfinite(value):
            self._writer.add_scalar(tag, value, step)


def _make_room(folder: Path) -> None:
    """An empty folder of prunekit's.

    Raises:
        ResultsError: If what is there is not.
    """
    mark = folder / _MARK
    if folder.is_symlink() or (folder.exists() and not mark.is_file()):
        raise ResultsError(
            f"{folder}: is not what prunekit wrote, and the recorder 'tensorboard' needs this name; remove it, or choose "
            "another output"
        )
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    mark.touch()


def _numbers(summary: Mapping[str, object], path: tuple[str, ...]) -> list[tuple[str, float]]:
    """Numbers of a summary, one level of mappings deep, with their names."""
    found = []
    for key, value in summary.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            found.append(("/".join((*path, key)), float(value)))
        elif isinstance(value, dict) and len(path) == 1:
            found += _numbers(value, (f"{path[0]}, {key}",))
    return found


def _group(metric: str) -> str:
    return metric.rpartition("_")[2]


def _split(metric: str) -> str:
    return metric.partition("_")[0]
