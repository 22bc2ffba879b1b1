"""The results file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit import Recorder, __version__
from prunekit.results import ResultsWriter

if TYPE_CHECKING:
    from prunekit import ProbeRecord
    from prunekit.records import RunView, StepRecord


class HDF5(Recorder):
    """Writes the run's ``.h5`` file, which ``prunekit inspect`` and ``pk.open`` read.

    After an interruption the engine's state may be one event ahead of the file; ``started`` adds what is
    missing.
    """

    name = "hdf5"

    def started(self, run: RunView) -> None:
        """Create the file, or bring the one that is there up to the run."""
        self._writer = ResultsWriter(run.out)
        if not run.out.exists():
            names = run.metric_names
            self._writer.create(
                __version__, run.spec, run.origins, run.spec_text, run.environment, run.shapes, names
            )
            return
        self._writer.set_status("running")
        done = self._writer.done()
        for phase in ("dense", "pruned", "finetuned"):
            for row in run.history.get(phase, [])[done["epochs"].get(phase, 0) :]:
                self._writer.add_epoch(phase, row)
        for step in run.steps[done["steps"] :]:
            self.step_finished(run, step)
        for phase in run.metrics:
            if phase not in done["phases"]:
                self.phase_finished(run, phase)
        for name, record in run.probes:
            if name not in done["probes"]:
                self.probe_finished(run, name, record)

    def epoch_finished(self, run: RunView, phase: str) -> None:
        """Add the epoch's row."""
        self._writer.add_epoch(phase, run.history[phase][-1])

    def phase_finished(self, run: RunView, phase: str) -> None:
        """Add metrics and weights."""
        self._writer.add_phase(phase, run.metrics[phase], run.weights[phase])

    def step_finished(self, run: RunView, step: StepRecord) -> None:
        """Add the step's row, masks and example indices."""
        assert run.examples is not None
        settings = run.spec["prune"]
        fixed = settings["sample"] == "fixed" or settings["examples"] is None
        self._writer.add_step(step, run.masks, run.examples, fixed)

    def probe_finished(self, run: RunView, name: str, record: ProbeRecord) -> None:
        """Add the probe's group."""
        self._writer.add_probe(name, record.kind_version, record.summary, record.attributes, record.groups)

    def finished(self, run: RunView) -> None:
        """Set the final status."""
        self._writer.finish(run.status, run.environment)
