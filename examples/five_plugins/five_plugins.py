"""One small plugin of each kind that a pruning run can have: criterion, statistic, scheduler, probe and recorder."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from pydantic import Field

import prunekit as pk

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from prunekit.statistics import ForwardPass, Problem


class OutputEnergy(pk.Estimator):
    """Gradient of ½‖f(x)‖² in the weights, the mean over the loss's normaliser.

    A sum over examples, so it does not matter how they are cut into batches. With it the outputs' size counts
    where the loss's gradient has vanished, as it does on a sample that is fitted well.
    """

    name = "output_energy"

    def start(self, problem: Problem) -> None:
        """Begin with zeros."""
        self.sums = problem.zeros()

    def add(self, batch: ForwardPass) -> None:
        """Add a batch's gradient, in one pass backwards."""
        import torch

        found = torch.autograd.grad(
            batch.outputs.square().sum() / 2,
            list(batch.problem.parameters.values()),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        for total, gradient in zip(self.sums.values(), found, strict=True):
            total += gradient

    def finish(self, normaliser: float) -> dict[str, torch.Tensor]:
        """Divide once, by the normaliser of all batches."""
        return {name: total / normaliser for name, total in self.sums.items()}


class GuardedTaylor(pk.Criterion):
    """|g·θ| + mix·|e·θ|: first-order changes of the loss and of the outputs' energy.

    The prediction is that of the loss alone, −Σ g·θ over the weights that go.
    """

    name = "guarded_taylor"
    requires = frozenset({"gradient", "output_energy"})
    separable = False  # the energy is that of the network's outputs; a block asked by itself has others

    class Options(pk.Options):
        """Options.

        Attributes:
            mix: Weight of the outputs' energy against the loss.
        """

        mix: float = Field(0.01, ge=0)

    def saliency(self, weights: pk.Tensors, statistics: pk.Statistics) -> pk.Tensors:
        """One number per weight; higher means keep."""
        loss, energy = statistics["gradient"], statistics["output_energy"]
        return {k: (w * loss[k]).abs() + self.options.mix * (w * energy[k]).abs() for k, w in weights.items()}

    def predicted_delta_loss(
        self, weights: pk.Tensors, statistics: pk.Statistics, masks: pk.Tensors
    ) -> float:
        """First-order change of the loss, in the loss's units; pruned weights are zero and add nothing."""
        gradient = statistics["gradient"]
        return -sum(float((w * gradient[k])[~masks[k]].double().sum()) for k, w in weights.items())


class TrustedStride(pk.Scheduler):
    """Goes on by one stride while prediction and measurement agree; halves the stride for good when they do not.

    Ends at ``sparsity``, or less than ``smallest`` before it, or when the stride falls below ``smallest``.
    """

    name = "trusted_stride"

    class Options(pk.Options):
        """Options.

        Attributes:
            sparsity: Where to end, the share of weights that are gone.
            stride: Sparsity that the first step adds.
            smallest: The smallest stride that is tried.
            tolerance: Most that predicted and measured change of the loss may differ by, in the loss's units.
        """

        sparsity: float = Field(0.8, gt=0, lt=1)
        stride: float = Field(0.2, gt=0, lt=1)
        smallest: float = Field(0.01, gt=0, lt=1)
        tolerance: float = Field(0.05, gt=0)

    def next(self, history: Sequence[pk.Attempt]) -> pk.Target | None:
        """The next target, one stride from where the last step that stayed has led."""
        stayed = [attempt.sparsity for attempt in history if attempt.accepted]
        here = stayed[-1] if stayed else 0.0
        stride = self.options.stride / 2 ** (len(history) - len(stayed))
        goal = min(here + stride, self.options.sparsity)
        return pk.Target(goal) if goal - here >= self.options.smallest else None

    def accept(self, attempt: pk.Attempt, history: Sequence[pk.Attempt]) -> bool:
        """Whether the measured change is near the predicted one; without a prediction, whether it is finite."""
        predicted = 0.0 if attempt.predicted_delta_loss is None else attempt.predicted_delta_loss
        tolerance = math.inf if attempt.predicted_delta_loss is None else self.options.tolerance
        return math.isfinite(attempt.delta_loss) and abs(attempt.delta_loss - predicted) <= tolerance


class StepGeometry(pk.Probe):
    """After each step: the change's length, its cosine with the gradient before it, and losses after it."""

    name = "step_geometry"
    moments = ("step",)

    def measure(self, moment: pk.Moment, generator: torch.Generator) -> pk.ProbeRecord:
        """Lengths over all prunable weights; a cosine with a zero vector is given as 0."""
        if not isinstance(moment, pk.StepMoment):
            raise pk.UnsupportedError(
                f"probe {self.name!r} measures steps and cannot be asked at {moment.name!r}"
            )
        change = moment.change()
        gradient = moment.gradient(moment.before())
        norm = math.sqrt(sum(float(d.double().square().sum()) for d in change.values()))
        steepness = math.sqrt(sum(float(g.double().square().sum()) for g in gradient.values()))
        product = sum(float((d.double() * gradient[k].double()).sum()) for k, d in change.items())
        found = {
            "norm": norm,
            "cosine": product / (norm * steepness) if norm * steepness > 0 else 0.0,
            "sample_loss": moment.loss(),
        }
        valid = moment.split("valid")
        if valid is not None:
            found["valid_loss"] = moment.loss(data=valid)
        return pk.ProbeRecord({"network": {k: pk.Series(v, ()) for k, v in found.items()}}, found)


class JsonLines(pk.Recorder):
    """One line of JSON for every attempt, probe and step, and for the end, in the output's name with ``.jsonl``."""

    name = "json_lines"

    def started(self, run: pk.RunView) -> None:
        """Begin; of a resumed run, keep what only the file has, earlier probes, and write the rest anew."""
        path = run.out.with_suffix(".jsonl")
        records = [(label, record) for label, record in run.probes if (record.step or 0) <= len(run.steps)]
        path.write_text(earlier_lines(path, records) if run.steps and path.exists() else "")
        for label, record in records:
            self.probe_finished(run, label, record)
        for attempt in run.attempts:
            self.attempt_finished(run, attempt)
        for step in run.steps:
            self.step_finished(run, step)

    def attempt_finished(self, run: pk.RunView, attempt: pk.Attempt) -> None:
        """A line for an attempt, also for one that is taken back."""
        self.write(
            run, "attempt", attempt, ("step", "sparsity", "accepted", "predicted_delta_loss", "delta_loss")
        )

    def step_finished(self, run: pk.RunView, step: pk.StepRecord) -> None:
        """A line for a step."""
        self.write(run, "step", step, ("step", "sparsity", "pruned", "predicted_delta_loss", "delta_loss"))

    def probe_finished(self, run: pk.RunView, label: str, record: pk.ProbeRecord) -> None:
        """A line for a probe's summary."""
        self.write(run, f"probe {label}", record, ("moment", "step", "summary"))

    def finished(self, run: pk.RunView) -> None:
        """The last line says how the run ended."""
        self.write(run, "finished", run, ("status",))

    def write(self, run: pk.RunView, event: str, source: Any, keys: tuple[str, ...]) -> None:
        """Append one line with these attributes of ``source``."""
        with run.out.with_suffix(".jsonl").open("a") as file:
            file.write(json.dumps({"event": event} | {key: getattr(source, key) for key in keys}) + "\n")


def earlier_lines(path: Path, records: list[tuple[str, pk.ProbeRecord]]) -> str:
    """The lines of probes at steps before those of ``records``; a run holds no more than the last of each."""
    last = {f"probe {label}": record.step or 0 for label, record in records}
    kept = []
    for text in path.read_text().splitlines(keepends=True):
        if text.endswith("\n"):  # a kill may have left half a line
            line = json.loads(text)
            if line["event"] in last and (line["step"] or 0) < last[line["event"]]:
                kept.append(text)
    return "".join(kept)


@pk.hookimpl
def prunekit_register_criteria() -> list[type[pk.Criterion]]:
    """The criterion."""
    return [GuardedTaylor]


@pk.hookimpl
def prunekit_register_statistics() -> list[type[pk.Estimator]]:
    """The statistic."""
    return [OutputEnergy]


@pk.hookimpl
def prunekit_register_schedulers() -> list[type[pk.Scheduler]]:
    """The scheduler."""
    return [TrustedStride]


@pk.hookimpl
def prunekit_register_probes() -> list[type[pk.Probe]]:
    """The probe."""
    return [StepGeometry]


@pk.hookimpl
def prunekit_register_recorders() -> list[type[pk.Recorder]]:
    """The recorder."""
    return [JsonLines]
