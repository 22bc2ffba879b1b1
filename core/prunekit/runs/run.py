"""A run from spec to results: dense, pruning steps, fine-tuning, probes, with a boundary after each part."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunekit import distributed
from prunekit.data import Split
from prunekit.errors import PrunekitError, PrunekitWarning, RunError, was_interrupted
from prunekit.masks.apply import apply_masks
from prunekit.masks.prunable import prunable_parameters
from prunekit.network.axes import observe_axes
from prunekit.network.call import Batch
from prunekit.network.devices import device_errors
from prunekit.network.measure import measure, metric_names, metrics, own_part
from prunekit.network.restore import preserved_rng
from prunekit.observing.listener import Listener
from prunekit.observing.moment import Moment, Surroundings
from prunekit.observing.probe import Moments, Probe, asked
from prunekit.observing.recorder import Recorder
from prunekit.plugins.build import estimators, measures, ranking
from prunekit.plugins.host import PluginManager
from prunekit.pruning.coverage import coverage
from prunekit.pruning.first import FirstSteps
from prunekit.pruning.sample import Sample
from prunekit.pruning.step import Measure, Outcome, Pruner
from prunekit.pruning.until import KEY, watch
from prunekit.records import Attempt, Metrics, Plain, ProbeRecord, RunView, StepRecord
from prunekit.results.format import METRIC_COLUMNS
from prunekit.runs import plan as setup
from prunekit.runs.circumstances import COSTS, changes, circumstances, costs
from prunekit.runs.circumstances import described as described_changes
from prunekit.runs.finished import FinishedBlocks, forget
from prunekit.runs.pieces import noted
from prunekit.runs.resume import refuse_another_run
from prunekit.runs.shared import Shared, dense_key
from prunekit.runs.state import State, blocks_path, plain, state_path
from prunekit.runs.trained import Source
from prunekit.runs.view import refreshed
from prunekit.seeds import derived, generator
from prunekit.spec.model import Prune
from prunekit.spec.resolve import Spec
from prunekit.training.loop import Trainer
from prunekit.training.normalisation import recalibrate

_LOOKED_AT = 64
"""Examples that show how weights are used whose class does not tell."""


def execute(
    spec: Spec,
    out: Path,
    state: State | None,
    manager: PluginManager,
    listener: Listener | None = None,
    source: Source | None = None,
    shared: Shared | None = None,
) -> None:
    """Run a spec, or what is left of it.

    Args:
        spec: Resolved.
        out: The results file; the state is beside it until the run is complete.
        state: Where to go on, or ``None`` to start.
        manager: Plugins, for statistics and observing hooks.
        listener: Follows the progress.
        source: May have the dense network already.
        shared: What other runs of this process have made may be taken from there, and kept there.

    Raises:
        PrunekitError: Recorded as ``failed`` (or ``interrupted`` for a keyboard interrupt), then raised.
    """
    shared = None if distributed.world() > 1 else shared  # processes must wait for each other alike
    plan = setup.bind(spec, manager, shared)
    if state is not None:
        refuse_another_run(state_path(out), state, plan.bound, plan.inputs, plan.examples)
    execution = _Execution(spec, plan, out, state, manager, listener or Listener(), source, shared)
    distributed.gather(None)  # existing files may be replaced once every process has got this far
    if state is None and execution.first:
        # The caller has checked that existing files may be replaced. The state first: alone it would look resumable.
        state_path(out).unlink(missing_ok=True)
        forget(blocks_path(out))
        out.unlink(missing_ok=True)
    with preserved_rng():
        # What draws without asking for a generator must not depend on what the process has drawn before.
        torch.default_generator.manual_seed(derived(spec.settings.seed, "passes"))
        execution.go()


class _Execution:
    def __init__(
        self,
        spec: Spec,
        plan: setup.Plan,
        out: Path,
        state: State | None,
        manager: PluginManager,
        listener: Listener,
        source: Source | None,
        shared: Shared | None,
    ) -> None:
        self.source, self.shared = source, shared
        self._dense_key = ""
        self._began = time.monotonic()
        self.spec, self.plan, self.manager, self.listener = spec, plan, manager, listener
        self.settings, self.seeds = spec.settings, spec.data["seeds"]
        self.model, self.splits, self.loss = plan.model, plan.splits, plan.loss
        self.probes = _probes(spec, plan.pruning)
        # Of several processes, each has its own model; phases are added to the state's as they end.
        self._phases: dict[str, dict[str, Tensor]] = {}
        self.surroundings = Surroundings(
            plan.model,
            plan.loss,
            partial(estimators, manager=manager),
            plan.splits,
            self._phases,
            spec.settings.memory,
            partial(ranking, manager=manager),
        )
        for probe, _ in self.probes.values():
            for criterion in probe.criteria:
                self.surroundings.ranking(criterion)  # unknown ones are refused here
        # Of several processes, the first alone writes, and tells recorders and plugins what happens.
        self.first = distributed.rank() == 0
        self.recorders: list[Recorder] = [part.build() for part in spec.listed("recorders")]
        self.pruner = self._pruner(plan.pruning)
        self.state_file = state_path(out)
        self._blocks = blocks_path(out)
        fresh = state is None
        self._same_weights()
        self._updated = False
        now = circumstances(plan, spec.base.resolve())
        self.state = state or State(
            plan.bound, plan.spec_hash, plan.inputs, current=setup.state_of(plan.model), environment=now
        )
        if self.pruner is not None:
            self.pruner.warnings = self.state.warnings
        self._earlier = float(self.state.environment.get("seconds", 0.0))
        if not fresh:
            self._restore()
            self._note_changes(now)
        self.view = RunView(
            out=out,
            spec=deepcopy(plan.bound),
            origins=dict(spec.origins),
            spec_text=spec.text,
            environment={k: v for k, v in (self.state.environment or now).items() if k not in COSTS},
            shapes={layer.name: layer.shape for layer in self.pruner.layers} if self.pruner else {},
            metric_names=metric_names(plan.splits, plan.metrics),
            total_steps=self._total_steps,
            spec_hash=self.state.spec_hash,
            inputs=dict(self.state.inputs),
        )

    def _pruner(self, given: setup.Pruning | None) -> Pruner | None:
        """What makes the steps; ``None`` for a run that does not prune."""
        settings = self.settings.prune
        if given is None or settings is None:
            return None
        # Before anything is written: a selector may need to know which way a weight's inputs lie.
        few = self.splits.train.first(_LOOKED_AT)
        prunable = prunable_parameters(self.model, settings.prunable)
        observe_axes(self.model, prunable, lambda: [(few.x, few.y)])
        return Pruner(
            self.surroundings,
            given.criterion,
            given.scheduler,
            given.selector,
            given.lam,
            settings.prunable,
            self._measures(given),
            zeros=settings.zeros,
            wanted=lambda step: any(recorder.wants_saliencies(step) for recorder in self.recorders),
            sequential=settings.sequential,
            finished=lambda step: FinishedBlocks(self._blocks, step),
        )

    def _measures(self, given: setup.Pruning) -> dict[str, Measure]:
        """What is measured of every proposal for the scheduler."""
        found = measures(given.needed, self.seeds["sample"], self.manager)
        if given.until is not None:
            metric, (split, kind) = given.until.metric, given.until.metric.split("_")
            data: Split = getattr(self.splits, split)
            if split == "train":
                data = data.first(self.settings.evaluate.train_examples)
            batches = own_part(data)

            def value(weights: Mapping[str, Tensor]) -> float:
                loss, error = measure(self.model, batches, self.loss, weights)
                return loss if kind == "loss" else float(error or 0.0)

            found[KEY] = watch(value, lambda: float(self.state.metrics["dense"][metric] or 0.0))
        return found

    @property
    def _total_steps(self) -> int | None:
        """How many steps there will be; ``None`` if the scheduler adapts."""
        if self.pruner is None:
            return 0
        return None if self.pruner.levels is None else len(self.pruner.levels)

    @property
    def _masks(self) -> dict[str, Tensor]:
        return {} if self.pruner is None else self.pruner.masks

    @property
    def _only_masked(self) -> bool:
        """Have pruning steps changed nothing but masks so far?"""
        settings = self.settings.prune
        return not self._updated and (settings is None or settings.recalibrate_batchnorm is None)

    def _restore(self) -> None:
        """Put model and masks back to where the state was saved."""
        state = self.state
        state.check_fits(self.state_file, setup.tensors(self.model))
        self._updated = state.phase == "prune" and state.done > 0 and bool(state.current)
        dtypes = {name: t.dtype for name, t in setup.state_of(self.model).items()}
        for phase, weights in state.weights.items():  # a results file holds bfloat16 as float32
            state.weights[phase] = {name: t.to(dtypes[name]) for name, t in weights.items()}
        self._phases.update(state.weights)
        setup.load_state(self.model, state.current or state.weights["dense"])
        if state.masks and self.pruner is not None:
            self.pruner.restore(state.masks, state.steps)
            if not state.current:
                apply_masks(self.model, state.masks)

    def _note_changes(self, now: dict[str, Plain]) -> None:
        """Record, and tell the user, in which other circumstances the run goes on."""
        state = self.state
        changed = changes(state.environment, state.resumptions, now)
        if not changed:
            return
        state.resumptions.append(
            {"step": len(state.steps), "phase": state.phase, "date": now["date"], "changes": changed}
        )
        warnings.warn(
            f"resumed under other circumstances than before ({described_changes(changed)}), so from here on the numbers "
            "may differ in some bits from those of an uninterrupted run",
            PrunekitWarning,
            stacklevel=2,
        )

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
            self._call("prunekit_run_started", refreshed(self.view, self.state))
            for name in order[order.index(self.state.phase) :]:
                with device_errors():
                    phases[name]()
            self.view.status = "complete"
            self._finish()
        except BaseException as error:
            self.view.status = "interrupted" if was_interrupted(error) else "failed"
            self.view.environment["error"] = str(error) or type(error).__name__
            # The first error is what the user needs; one more while recording it must not hide it.
            try:
                self._finish()
            except Exception as second:
                error.add_note(f"recording the failure failed too: {second}")
            if isinstance(error, SystemExit):  # which would look like the end of a run that is complete
                raise RunError(f"a plugin has asked to end the process ({error!r})") from error
            raise
        if self.first:
            self.state_file.unlink(missing_ok=True)
            forget(self._blocks)

    def _finish(self) -> None:
        self.view.environment |= self._costs()
        self._tell("finished")
        self._call("prunekit_run_finished", refreshed(self.view, self.state))

    # -- phases ------------------------------------------------------------------------------------

    def _train(self) -> None:
        settings = self.settings.train
        if settings is not None and self.spec.data["model"]["checkpoint"] is None and settings.epochs:
            if self._taken():
                return
            self._begin("train", settings.epochs)
            trainer = Trainer(self.model, self.splits, self.loss, settings, self.seeds["order"], "dense")
            self._epochs("dense", trainer)
        self._close_phase("dense", self._dense_metrics(), "prune")

    def _taken(self) -> bool:
        """Begin with a network that another run has trained, if there is one and nothing has been trained yet."""
        state = self.state
        if state.optimizer is not None or (self.source is None and not state.done):
            return False
        own = self.source(state.environment, self.plan.inputs) if self.first and self.source else None
        found = distributed.from_first(own)
        if found is None and state.done:
            raise RunError(
                "the network that this run started with is missing; use --overwrite to start again"
            )
        if found is None:
            return False
        setup.load_state(self.model, dict(found.weights))
        rows = [dict(row) for row in found.history]
        # The state is one epoch ahead of the file, never more.
        for count in range(state.done + 1, len(rows) + 1):
            state.history["dense"], state.done = rows[:count], count
            self._save()
            self._tell("epoch_finished", "dense")
        self._close_phase("dense", self._dense_metrics(), "prune")
        return True

    def _prune(self) -> None:
        state, total, pruner, settings = self.state, self.view.total_steps, self.pruner, self.settings.prune
        last: Metrics | None = None
        self._ask("dense")
        if pruner is None or settings is None:
            self._move_to("finetune", setup.state_of(self.model))
            return
        self._begin("prune", total)
        for cost in pruner.costs if total is None or state.done < total else ():
            self.listener.message(cost)
        if not state.done and type(self.listener) is not Listener:  # to the plain one nobody listens
            self.listener.message(self._covered(settings))
        for outcome in pruner.outcomes(partial(self._sample, settings), state.attempts, state.done):
            if pruner.levels is None:
                state.attempts.append(outcome.attempt)
            if outcome.step is None:
                self._taken_back(outcome.attempt)
            else:
                last = self._step(outcome, outcome.step, settings)
        if last is None or settings.recalibrate_batchnorm is not None:
            last = self._metrics()
        stop = pruner.scheduler.stopped(state.attempts)
        state.stopped = None if stop is None else stop.why
        self._close_phase("pruned", last, "finetune")

    def _finetune(self) -> None:
        settings = self.settings.finetune
        self._ask("pruned")
        # Asked here, so that a resumed run ends where it has ended before.
        short = None if self.pruner is None else self.pruner.shortfall(self.state.attempts)
        if short is not None:
            raise RunError(short)
        if settings is not None and settings.epochs:
            self._begin("finetune", settings.epochs)
            trainer = Trainer(
                self.model,
                self.splits,
                self.loss,
                settings,
                self.seeds["finetune"],
                "finetuned",
                self._masks,
            )
            self._epochs("finetuned", trainer)
            self._close_phase("finetuned", self._metrics(), "probes")
        else:
            self._move_to("probes", setup.state_of(self.model))

    def _probe(self) -> None:
        self._ask("finetuned")
        at_the_end = [label for label, (_, moments) in self.probes.items() if moments.at("end")]
        self._begin("probes", len(at_the_end))
        self._ask("end")

    def _ask(self, name: str) -> None:
        """Ask the probes of a moment, those that have not been asked before the run was stopped."""
        state = self.state
        if name != "end" and (state.done or name not in self._phases):
            return
        asked = {label for label, record in state.probes if record.moment == name}
        moment = Moment(name, self.surroundings, self._masks)
        for label, (probe, moments) in self.probes.items():
            if moments.at(name) and label not in asked:
                state.probes.append((label, self._measured(label, probe, moment)))
                state.done += name == "end"
                self._save()
                self._tell("probe_finished", *state.probes[-1])
                if name == "end":
                    self.listener.probe(label)

    def _measured(self, label: str, probe: Probe, moment: Moment) -> ProbeRecord:
        # The last run phase keeps the generator that it had before probes had moments.
        place = () if moment.name == "end" else (moment.name, moment.step or 0)
        with noted(self.state, label, moment, self._save, self.listener):
            record = asked(probe, moment, generator(self.seeds["sample"], "probe", label, *place))
        return plain(
            replace(
                record, moment=moment.name, step=moment.step, name=probe.name, headline=tuple(probe.headline)
            )
        )

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
                loss, error = measure(self.model, own_part(self.splits.valid), self.loss)
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

    def _sample(self, settings: Prune, index: int) -> Sample:
        """The examples of a step."""
        draw = 0 if settings.sample == "fixed" else index
        self._examples = self._draw(settings.examples, "examples", draw)
        chosen = self.splits.train.take(self._examples[distributed.shard(len(self._examples))])
        return Sample(
            [(chosen.x, chosen.y)],
            generator(self.seeds["sample"], "statistics", index),
            partial(self._others, self._examples, index),
            self._known() if not index else None,
        )

    def _known(self) -> FirstSteps | None:
        """First steps of other runs from the same network."""
        if self.shared is None:
            return None
        # A run that goes on has not measured its dense network.
        return self.shared.first_steps(self._dense_key or self._key(self.state.weights["dense"]))

    def _others(self, examples: Tensor, index: int) -> list[Batch] | None:
        """As many training examples as a step's, none of them among these, as far as there are; ``None``: none."""
        others = self._draw(None, "")
        others = others[~torch.isin(others, examples)]
        if not len(others):
            return None
        order = torch.randperm(
            len(others), generator=generator(self.seeds["sample"], "fresh", index), device="cpu"
        )
        chosen = others[order[: len(examples)]]
        split = self.splits.train.take(chosen[distributed.shard(len(chosen))])
        return [(split.x, split.y)]

    def _taken_back(self, attempt: Attempt) -> None:
        """Everything is as before the attempt; only the attempt itself is new."""
        self._save()
        self._tell("attempt_finished", attempt)
        self.listener.attempt(attempt)

    def _step(self, outcome: Outcome, record: StepRecord, settings: Prune) -> Metrics | None:
        """Record a step; what was measured after it, if anything was."""
        state, every, total = self.state, self.settings.evaluate.every, self.view.total_steps
        due = record.step % every == 0 or record.step == total
        measured = self._metrics() if due else {}
        record = replace(
            record,
            train_loss=measured.get("train_loss"),
            valid_loss=measured.get("valid_loss"),
            test_loss=measured.get("test_loss"),
            train_error=measured.get("train_error"),
            valid_error=measured.get("valid_error"),
            test_error=measured.get("test_error"),
            metrics={
                name: measured.get(name) for name in self.view.metric_names if name not in METRIC_COLUMNS
            },
        )
        self._updated = self._updated or outcome.updated
        state.probes = [(label, old) for label, old in state.probes if old.step is None]
        # Before batch normalisation is calibrated anew: the step's numbers are of the network as it was measured.
        for label, (probe, moments) in self.probes.items():
            if moments.at("step", record.step):
                assert outcome.moment is not None
                outcome.moment.losses = self._whole_losses(record, settings)
                state.probes.append((label, self._measured(label, probe, outcome.moment)))
        if settings.recalibrate_batchnorm is not None:
            chosen = self._draw(settings.recalibrate_batchnorm, "recalibrate", record.step - 1)
            recalibrate(self.model, self.splits.train.take(chosen))
            self._same_weights()
        state.steps.append(record)
        state.masks = {name: m.cpu() for name, m in self._masks.items()}
        state.examples = self._examples
        state.saliency = None if outcome.saliency is None else outcome.saliency.cpu()
        state.done = record.step
        state.current = {} if self._only_masked else setup.state_of(self.model)
        adapts = self.view.total_steps is None
        if not self._only_masked or adapts:
            self._save()  # else the results file will hold all there is to know
        if adapts:
            self._tell("attempt_finished", outcome.attempt)
        for label, probed in state.probes:
            if probed.step is not None:
                self._tell("probe_finished", label, probed)
        view = self._tell("step_finished", record)
        if settings.sequential is not None:
            forget(self._blocks)
        self._call("prunekit_step_finished", view, step=record)
        self.listener.step(record)
        return measured or None

    def _whole_losses(self, record: StepRecord, settings: Prune) -> dict[str, tuple[float, float]]:
        """Losses before and after a step, of splits that are measured as a whole, while steps alone change them."""
        if settings.recalibrate_batchnorm is not None:
            return {}
        steps, examples = self.state.steps, self.settings.evaluate.train_examples
        first = steps[-1] if steps else self.state.metrics["dense"]
        names = ["valid", "test"]
        if examples is None or examples >= len(self.splits.train):
            names.append("train")
        pairs = {name: (first.get(f"{name}_loss"), record.get(f"{name}_loss")) for name in names}
        return {name: (a, b) for name, (a, b) in pairs.items() if a is not None and b is not None}

    def _draw(self, count: int | None, *labels: str | int) -> Tensor:
        total = len(self.splits.train)
        if count is None or count >= total:
            return torch.arange(total, device="cpu")
        return torch.randperm(total, generator=generator(self.seeds["sample"], *labels), device="cpu")[:count]

    def _dense_metrics(self) -> Metrics:
        if self.shared is None:
            return self._metrics()
        self._dense_key = self._key(setup.tensors(self.model))
        return dict(self.shared.once("metrics", self._dense_key, self._metrics))

    def _key(self, weights: Mapping[str, Tensor]) -> str:
        """What runs share by that begin with a network of these weights."""
        plan = self.plan
        return dense_key(plan.bound, [plan.inputs, plan.examples, str(plan.device)], weights)

    def _metrics(self) -> Metrics:
        examples = self.settings.evaluate.train_examples
        return metrics(self.model, self.splits, self.loss, examples, self.plan.metrics)

    def _covered(self, settings: Prune) -> str:
        """What is pruned and what is not, and by which rule, as far as a few examples tell."""
        few = self.splits.train.first(_LOOKED_AT)
        for batches in ([(few.x, few.y)], None):
            with suppress(
                Exception
            ):  # of a network that takes no few examples, or of what a statistic will tell better
                return coverage(self.model, batches, settings.prunable).described()
        return ""

    # -- boundaries --------------------------------------------------------------------------------

    def _begin(self, phase: str, total: int | None) -> None:
        self.view.phase = phase
        self.listener.phase(phase, total, self.state.done)

    def _close_phase(self, name: str, measured: Metrics, following: str) -> None:
        self.state.metrics[name] = measured
        self.state.weights[name] = self._phases[name] = weights = setup.state_of(self.model)
        self._move_to(following, weights)
        self._tell("phase_finished", name)
        self.state.recorded.append(name)

    def _move_to(self, phase: str, weights: dict[str, Tensor]) -> None:
        state = self.state
        state.phase, state.done, state.optimizer, state.best = phase, 0, None, None
        state.current = weights
        self._save()

    def _costs(self) -> dict[str, Plain]:
        return costs(self.plan.device, self._earlier + time.monotonic() - self._began)

    def _save(self) -> None:
        if self.first:
            self.state.environment |= self._costs()
            self.state.save(self.state_file)

    def _same_weights(self) -> None:
        """What every process computes alike must not drift where their devices round differently."""
        distributed.take_first(setup.tensors(self.model))

    def _tell(self, event: str, *details: Any) -> RunView:
        if not self.first:
            return self.view
        view = refreshed(self.view, self.state)
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


def _probes(spec: Spec, pruning: setup.Pruning | None) -> dict[str, tuple[Probe, Moments]]:
    """Label to a probe and when it is asked.

    Raises:
        SpecError: If one is asked at steps that it cannot measure.
    """
    probes = {}
    for part in spec.listed("probes"):
        probe: Probe = part.build()
        label, moments = part.engine["label"], part.engine["moments"]
        when = Moments.parse(moments or probe.moments)
        if pruning is not None and when.every:
            probe.check(pruning.criterion.name, partial(pruning.criterion.joint_model, pruning.lam))
        probes[label or probe.name] = probe, when
    return probes
