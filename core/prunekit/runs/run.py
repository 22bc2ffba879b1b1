"""A run from spec to results: dense, pruning steps, fine-tuning, probes, with a boundary after each part."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunekit import distributed
from prunekit.component import scalar
from prunekit.errors import PrunekitError, RunError
from prunekit.masks.apply import apply_masks
from prunekit.network.measure import measure, metric_names, metrics, share
from prunekit.observing.landscape import Landscape
from prunekit.observing.listener import Listener
from prunekit.observing.probe import Probe
from prunekit.observing.recorder import Recorder
from prunekit.plugins.host import PluginManager
from prunekit.pruning.step import Pruner
from prunekit.records import Metrics, ProbeRecord, RunView, Series
from prunekit.runs import plan as setup
from prunekit.runs.state import State
from prunekit.seeds import generator
from prunekit.spec.resolve import Spec
from prunekit.training.loop import Trainer
from prunekit.training.normalisation import recalibrate


def execute(
    spec: Spec, out: Path, state: State | None, manager: PluginManager, listener: Listener | None = None
) -> None:
    """Run a spec, or what is left of it.

    Args:
        spec: Resolved.
        out: The results file; the state lies beside it until the run is complete.
        state: Where to go on, or ``None`` to start.
        manager: Plugins, for statistics and observing hooks.
        listener: Follows the progress.

    Raises:
        PrunekitError: Recorded as ``failed`` (or ``interrupted`` for a keyboard interrupt), then raised.
    """
    execution = _Execution(spec, setup.build(spec, manager), out, state, manager, listener or Listener())
    distributed.gather(None)  # what is there may go once every process has got this far
    if state is None and execution.first:
        # Whoever calls has made sure that what is there may go. The state first: alone it would look resumable.
        state_path(out).unlink(missing_ok=True)
        out.unlink(missing_ok=True)
    execution.go()


def state_path(out: Path) -> Path:
    """Where the state of an unfinished run lies."""
    return out.with_name(out.name + ".state")


class _Execution:
    def __init__(
        self,
        spec: Spec,
        plan: setup.Plan,
        out: Path,
        state: State | None,
        manager: PluginManager,
        listener: Listener,
    ) -> None:
        self.spec, self.plan, self.manager, self.listener = spec, plan, manager, listener
        self.settings, self.seed = spec.run, spec.run.seed
        self.model, self.splits, self.loss = plan.model, plan.splits, plan.loss
        self.pruner = Pruner(
            plan.model,
            plan.loss,
            plan.criterion,
            plan.levels,
            plan.selector,
            spec.run.prune.prunable,
            spec.run.memory,
            manager,
        )
        self.probes: list[Probe] = [part.build() for part in spec.listed("probes")]
        # Of several processes, the first alone writes, and tells recorders and plugins what happens.
        self.first = distributed.rank() == 0
        self.recorders: list[Recorder] = [part.build() for part in spec.listed("recorders")]
        self.state_file = state_path(out)
        fresh = state is None
        self._same_weights()
        self.state = state or State(spec=spec.data, current=setup.state_of(plan.model))
        if not fresh:
            self._restore()
        self.view = RunView(
            out=out,
            spec=deepcopy(spec.data),
            origins=dict(spec.origins),
            spec_text=spec.text,
            environment=setup.environment(plan.device),
            shapes={layer.name: layer.shape for layer in self.pruner.layers},
            metric_names=metric_names(plan.splits),
        )

    @property
    def _only_masked(self) -> bool:
        """Do pruning steps change nothing but masks?"""
        updates = getattr(self.plan.criterion, "update", None) is not None
        return not updates and self.settings.prune.recalibrate_batchnorm is None

    def _restore(self) -> None:
        """Put model and masks back to where the state was saved."""
        state = self.state
        dtypes = {name: t.dtype for name, t in setup.state_of(self.model).items()}
        for phase, weights in state.weights.items():  # a results file holds bfloat16 as float32
            state.weights[phase] = {name: t.to(dtypes[name]) for name, t in weights.items()}
        setup.load_state(self.model, state.current or state.weights["dense"])
        if state.masks:
            self.pruner.restore(state.masks)
            if not state.current:
                apply_masks(self.model, state.masks)

    def go(self) -> None:
        """Run every phase that is not done, and tell the observers how it ended."""
        phases: dict[str, Callable[[], None]] = {
            "train": self._train,
            "prune": self._prune,
            "finetune": self._finetune,
            "probes": self._probe,
        }
        order = list(phases)
        try:
            self._save()
            self._tell("started")
            self._call("prunekit_run_started", self._refreshed())
            for name in order[order.index(self.state.phase) :]:
                phases[name]()
            self.view.status = "complete"
            self._finish()
        except BaseException as error:
            self.view.status = "failed" if isinstance(error, Exception) else "interrupted"
            self.view.environment["error"] = str(error) or type(error).__name__
            # The first error is what the user needs; one more while recording it must not hide it.
            try:
                self._finish()
            except Exception as second:
                error.add_note(f"recording the failure failed too: {second}")
            raise
        if self.first:
            self.state_file.unlink(missing_ok=True)

    def _finish(self) -> None:
        self._tell("finished")
        self._call("prunekit_run_finished", self._refreshed())

    # -- phases ------------------------------------------------------------------------------------

    def _train(self) -> None:
        settings = self.settings.train
        if settings is not None and self.spec.data["model"]["checkpoint"] is None and settings.epochs:
            self._begin("train", settings.epochs)
            self._epochs("dense", Trainer(self.model, self.splits, self.loss, settings, self.seed, "dense"))
        self._close_phase("dense", self._metrics(), "prune")

    def _prune(self) -> None:
        total = len(self.pruner.levels)
        last: Metrics | None = None
        self._begin("prune", total)
        for cost in self.pruner.costs if self.state.done < total else ():
            self.listener.message(cost)
        for index in range(self.state.done, total):
            last = self._step(index)
        if last is None or self.settings.prune.recalibrate_batchnorm is not None:
            last = self._metrics()
        self._close_phase("pruned", last, "finetune")

    def _finetune(self) -> None:
        settings = self.settings.finetune
        if settings is not None and settings.epochs:
            self._begin("finetune", settings.epochs)
            masks = self.pruner.masks
            trainer = Trainer(self.model, self.splits, self.loss, settings, self.seed, "finetuned", masks)
            self._epochs("finetuned", trainer)
            self._close_phase("finetuned", self._metrics(), "probes")
        else:
            self._move_to("probes", setup.state_of(self.model))

    def _probe(self) -> None:
        landscape = Landscape(self.model, self.splits, self.loss, self.state.weights, self.pruner.masks)
        self._begin("probes", len(self.probes))
        for index in range(self.state.done, len(self.probes)):
            probe = self.probes[index]
            record = probe.measure(landscape, generator(self.seed, "probe", probe.name))
            self.state.probes[probe.name] = _plain_record(record)
            self.state.done = index + 1
            self._save()
            self._tell("probe_finished", probe.name, record_from_plain(self.state.probes[probe.name]))
            self.listener.probe(probe.name)

    # -- parts of phases ---------------------------------------------------------------------------

    def _epochs(self, phase: str, trainer: Trainer) -> None:
        """Train to the end and leave the best-validation weights in the model."""
        state, settings = self.state, trainer.settings
        if state.optimizer is not None:
            trainer.restore(state.optimizer)
        for index in range(state.done, settings.epochs):
            running = trainer.epoch(index)
            self._same_weights()
            row: dict[str, float | None] = {"epoch": index + 1, "running_loss": running}
            value = -float(index)  # without a validation split the last epoch is the best
            if self.splits.valid is not None and len(self.splits.valid):
                loss, error = measure(self.model, share(self.splits.valid), self.loss)
                row["valid_loss"] = value = loss
                if error is not None:
                    row["valid_error"] = value = error
            if state.best is None or value < state.best["value"]:
                state.best = {"value": value, "epoch": index + 1, "weights": setup.state_of(self.model)}
            state.history.setdefault(phase, []).append(row)
            state.done = index + 1
            state.current = setup.state_of(self.model)
            state.optimizer = trainer.state()
            self._save()
            self._tell("epoch_finished", phase)
            self.listener.epoch(phase, row)
        trainer.close()
        if state.best is not None:
            setup.load_state(self.model, state.best["weights"])

    def _step(self, index: int) -> Metrics:
        settings = self.settings.prune
        draw = 0 if settings.sample == "fixed" else index
        examples = self._draw(settings.examples, "examples", draw)
        here = examples[distributed.shard(len(examples))]
        sample = self.splits.train.take(here)
        record = self.pruner.step(index, [(sample.x, sample.y)], generator(self.seed, "statistics", index))
        found = self._metrics()
        record = replace(record, **found)  # type: ignore[arg-type]
        if settings.recalibrate_batchnorm is not None:
            chosen = self._draw(settings.recalibrate_batchnorm, "recalibrate", index)
            recalibrate(self.model, self.splits.train.take(chosen))
            self._same_weights()
        state = self.state
        state.steps.append(record)
        state.masks = {name: m.cpu() for name, m in self.pruner.masks.items()}
        state.examples = examples
        state.done = index + 1
        if self._only_masked:  # the results file will hold all there is to know
            state.current = {}
        else:
            state.current = setup.state_of(self.model)
            self._save()
        view = self._tell("step_finished", record)
        self._call("prunekit_step_finished", view, step=record)
        self.listener.step(record)
        return found

    def _draw(self, count: int | None, *labels: str | int) -> Tensor:
        total = len(self.splits.train)
        if count is None or count >= total:
            return torch.arange(total)
        return torch.randperm(total, generator=generator(self.seed, *labels))[:count]

    def _metrics(self) -> Metrics:
        return metrics(self.model, self.splits, self.loss, self.settings.evaluate.train_examples)

    # -- boundaries --------------------------------------------------------------------------------

    def _begin(self, phase: str, total: int) -> None:
        self.view.phase = phase
        self.listener.phase(phase, total, self.state.done)

    def _close_phase(self, name: str, found: Metrics, following: str) -> None:
        self.state.metrics[name] = found
        self.state.weights[name] = weights = setup.state_of(self.model)
        self._move_to(following, weights)
        self._tell("phase_finished", name)
        self.state.recorded.append(name)

    def _move_to(self, phase: str, weights: dict[str, Tensor]) -> None:
        state = self.state
        state.phase, state.done, state.optimizer, state.best = phase, 0, None, None
        state.current = weights
        self._save()

    def _save(self) -> None:
        if self.first:
            self.state.save(self.state_file)

    def _same_weights(self) -> None:
        """What every process computes alike must not drift where their devices round differently."""
        distributed.take_first(setup.tensors(self.model))

    def _tell(self, event: str, *details: Any) -> RunView:
        if not self.first:
            return self.view
        view = self._refreshed()
        for recorder in self.recorders:
            try:
                getattr(recorder, event)(view, *details)
            except PrunekitError:
                raise
            except OSError as error:
                raise RunError(f"recorder {recorder.name!r} cannot write: {error}") from error
        return view

    def _call(self, hook: str, view: RunView, **details: Any) -> None:
        if self.first:
            getattr(self.manager.hook, hook)(run=view, **details)

    def _refreshed(self) -> RunView:
        view, state = self.view, self.state
        view.metrics = {name: dict(found) for name, found in state.metrics.items()}
        view.steps = list(state.steps)
        view.history = {name: [dict(row) for row in rows] for name, rows in state.history.items()}
        view.masks = {name: m.numpy().copy() for name, m in state.masks.items()}
        view.examples = None if state.examples is None else state.examples.numpy().copy()
        view.weights = _Weights(state.weights)
        view.probes = {name: record_from_plain(data) for name, data in state.probes.items()}
        return view


class _Weights(Mapping[str, Mapping[str, np.ndarray]]):
    """Numpy copies, made when asked for."""

    def __init__(self, phases: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._phases = dict(phases)

    def __getitem__(self, phase: str) -> dict[str, np.ndarray]:
        return {name: _array(t) for name, t in self._phases[phase].items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._phases)

    def __len__(self) -> int:
        return len(self._phases)


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # numpy has no bfloat16; float32 holds every one of its values
        tensor = tensor.float()
    return tensor.numpy().copy()


def _plain_record(record: ProbeRecord) -> dict[str, Any]:
    """A probe's findings as tensors and plain data, which the state can hold."""
    data = asdict(record)
    for key in ("summary", "attributes"):  # numpy's numbers are no plain data
        data[key] = json.loads(json.dumps(data[key], default=scalar))
    data["groups"] = {
        group: {
            key: {
                "values": torch.tensor(np.asarray(series.values)),
                "axes": list(series.axes),
                "units": series.units,
            }
            for key, series in arrays.items()
        }
        for group, arrays in record.groups.items()
    }
    return data


def record_from_plain(data: Mapping[str, Any]) -> ProbeRecord:
    """Undo the state's form of a probe's findings."""
    groups = {
        group: {key: Series(s["values"].numpy(), tuple(s["axes"]), s["units"]) for key, s in arrays.items()}
        for group, arrays in data["groups"].items()
    }
    return ProbeRecord(groups, data["summary"], data["kind_version"], data["attributes"])
