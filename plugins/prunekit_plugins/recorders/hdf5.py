"""The results file."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from prunekit import Recorder, __version__
from prunekit.results import ResultsWriter

if TYPE_CHECKING:
    from prunekit import ProbeRecord
    from prunekit.engine.events import RunView, StepRecord


class HDF5(Recorder):
    """Writes the run's ``.h5`` file, which ``prunekit inspect`` and ``pk.open`` read.

    After an interruption the engine's state may be one event ahead of the file; ``started`` adds what is
    missing.
    """

    name = "hdf5"

    def started(self, run: RunView) -> None:
        """Create the file, or bring the one that is there up to the run.

        Raises:
            ResultsError: If the one that is there is of an earlier format.
        """
        self._writer = ResultsWriter(run.out)
        if not run.out.exists():
            self._note(run)
            self._attempts = 0
            self._writer.create(
                __version__,
                run.spec,
                run.origins,
                run.spec_text,
                run.environment,
                run.shapes,
                run.metric_names,
                total_steps=run.total_steps,
                spec_hash=run.spec_hash,
                inputs=run.inputs,
            )
            return
        done = self._writer.done()
        self._note(run)
        self._writer.set_status("running")
        self._attempts = done.attempts
        for phase in ("dense", "pruned", "finetuned"):
            for row in run.history.get(phase, [])[done.epochs.get(phase, 0) :]:
                self._writer.add_epoch(phase, row)
        self._add_attempts(run)
        for step in run.steps[done.steps :]:
            self.step_finished(run, step)
        for phase in run.metrics:
            if phase not in done.phases:
                self.phase_finished(run, phase)
        for label, record in run.probes.items():
            if (label, "end", None) not in done.probes:
                self.probe_finished(run, label, record)

    def epoch_finished(self, run: RunView, phase: str) -> None:
        """Add the epoch's row."""
        self._note(run)
        self._writer.add_epoch(phase, run.history[phase][-1])

    def phase_finished(self, run: RunView, phase: str) -> None:
        """Add metrics and weights."""
        self._note(run)
        self._add_attempts(run)
        self._writer.add_phase(phase, run.metrics[phase], run.weights[phase])

    def step_finished(self, run: RunView, step: StepRecord) -> None:
        """Add the step's row, masks and example indices, and what was tried before it."""
        assert run.examples is not None
        settings = run.spec["prune"]
        fixed = settings["sample"] == "fixed" or settings["examples"] is None
        self._note(run)
        self._add_attempts(run)
        self._writer.add_step(step, run.masks, run.examples, fixed)

    def probe_finished(self, run: RunView, name: str, record: ProbeRecord) -> None:
        """Add the probe's group."""
        self._note(run)
        self._writer.add_probe(name, "end", None, record, kind=f"probe:{name}")

    def finished(self, run: RunView) -> None:
        """Set the final status."""
        self._note(run)
        self._add_attempts(run)
        self._writer.finish(run.status, run.environment)

    def _note(self, run: RunView) -> None:
        """What may grow at any moment goes along with the next change."""
        self._writer.note("warnings", run.warnings)
        self._writer.note("resumptions", run.resumptions)

    def _add_attempts(self, run: RunView) -> None:
        for attempt in run.attempts[self._attempts :]:
            row = asdict(attempt)
            self._writer.add_attempt({**row, "lambda": row["lam"]})
        self._attempts = len(run.attempts)
