"""The results file of a run, in HDF5."""

from __future__ import annotations

import warnings
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from prunekit import Options, PrunekitWarning, Recorder, SpecError, __version__
from prunekit.results import ResultsWriter

if TYPE_CHECKING:
    from prunekit import Attempt, ProbeRecord, RunView, StepRecord


class HDF5Options(Options):
    """What is kept beyond what every run keeps."""

    saliencies: bool | list[Annotated[int, Field(ge=1)]] = Field(
        False,
        description="Keep the saliencies that weights were chosen by: at every step, or at these steps.",
    )
    saliency_dtype: Literal["float16", "float32"] = Field(
        "float32", description="Type in which the saliencies are stored; float16 keeps three digits."
    )


class HDF5(Recorder):
    """Writes the run's ``.h5`` file, which ``prunekit inspect`` and ``pk.open`` read.

    After an interruption the engine's state may be one event ahead of the file; ``started`` adds what is
    missing.
    """

    name = "hdf5"
    _told = False  # that there are no saliencies

    Options = HDF5Options
    options: HDF5Options

    def wants_saliencies(self, step: int) -> bool:
        """Of the steps that the options name."""
        steps = self.options.saliencies
        return steps if isinstance(steps, bool) else step in steps

    def started(self, run: RunView) -> None:
        """Create the file, or bring the one that is there up to the run.

        Raises:
            ResultsError: If the one that is there is of an earlier format.
        """
        self._writer = ResultsWriter(run.out)
        steps = self.options.saliencies
        late = (
            []
            if isinstance(steps, bool) or run.total_steps is None
            else [s for s in steps if s > run.total_steps]
        )
        if late:
            raise SpecError(
                f"recorders: hdf5 is to keep saliencies of step {late[0]}, but there will be {run.total_steps} steps"
            )
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
        for step in run.steps[done.steps :]:
            self.step_finished(run, step)
        self._add_attempts(run)
        for phase in run.metrics:
            if phase not in done.phases:
                self.phase_finished(run, phase)
        for label, record in run.probes:
            if record.step is None and (label, record.moment, None) not in done.probes:
                self.probe_finished(run, label, record)

    def epoch_finished(self, run: RunView, phase: str) -> None:
        """Add the epoch's row."""
        self._note(run)
        self._writer.add_epoch(phase, run.history[phase][-1])

    def phase_finished(self, run: RunView, phase: str) -> None:
        """Add metrics and weights."""
        self._note(run)
        self._writer.add_phase(phase, run.metrics[phase], run.weights[phase])

    def attempt_finished(self, run: RunView, attempt: Attempt) -> None:
        """Add an attempt that was taken back; one that stays comes with its step."""
        if not attempt.accepted:
            self._note(run)
            self._add_attempts(run)

    def step_finished(self, run: RunView, step: StepRecord) -> None:
        """Add the step's row, masks, example indices, its attempt and what probes found, in one change."""
        assert run.examples is not None
        settings = run.spec["prune"]
        fixed = settings["sample"] == "fixed" or settings["examples"] is None
        probes = [(label, record) for label, record in run.probes if record.step == step.step]
        saliencies = run.saliencies if self.wants_saliencies(step.step) else None
        if saliencies is None and self.wants_saliencies(step.step) and not self._told:
            self._told = True
            text = f"recorders: the criterion {settings['criterion']['name']} chooses without saliencies, so none are kept"
            warnings.warn(text, PrunekitWarning, stacklevel=2)
        self._note(run)
        attempts, dtype = self._new_attempts(run), self.options.saliency_dtype
        self._writer.add_step(step, run.masks, run.examples, fixed, attempts, probes, saliencies, dtype)

    def probe_finished(self, run: RunView, label: str, record: ProbeRecord) -> None:
        """Add what a probe found; at a step that comes with the step."""
        if record.step is None:
            self._note(run)
            self._writer.add_probe(label, record)

    def finished(self, run: RunView) -> None:
        """Set the final status."""
        self._note(run)
        self._writer.finish(run.status, run.environment)

    def _note(self, run: RunView) -> None:
        """What may grow at any moment goes along with the next change."""
        self._writer.note("warnings", run.warnings)
        self._writer.note("resumptions", run.resumptions)
        self._writer.note("stopped", run.stopped)

    def _add_attempts(self, run: RunView) -> None:
        for row in self._new_attempts(run):
            self._writer.add_attempt(row)

    def _new_attempts(self, run: RunView) -> list[dict[str, object]]:
        """Rows of the attempts that the file does not have, which it has from now on."""
        new, self._attempts = run.attempts[self._attempts :], len(run.attempts)
        return [
            {
                "step": attempt.step,
                "target_sparsity": attempt.target.sparsity,
                "lambda": attempt.lam,
                "damping": attempt.target.damping,
                "predicted_delta_loss": attempt.predicted_delta_loss,
                "delta_loss": attempt.delta_loss,
                "accepted": attempt.accepted,
                "seconds": attempt.seconds,
                "measured": {
                    # JSON has neither NaN nor infinity.
                    probe: {name: value if isfinite(value) else None for name, value in found.items()}
                    for probe, found in attempt.measured.items()
                },
            }
            for attempt in new
        ]
