"""A pruning step: estimate, propose, apply, measure, and keep it or take it back."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from prunekit import distributed
from prunekit.errors import PrunekitWarning, RunError, SpecError, UnsupportedError
from prunekit.masks.apply import zero
from prunekit.masks.apportion import pruned_count
from prunekit.masks.axes import layers_of
from prunekit.masks.experts import experts, named, spread, unreached
from prunekit.masks.items import Items
from prunekit.masks.prunable import described, left_out, notable, prunable_parameters, shortened
from prunekit.masks.settings import Prunable
from prunekit.masks.weights import pruned_counts
from prunekit.network.measure import measure
from prunekit.network.restore import refuse_inference_tensors, taking_turns
from prunekit.observing.moment import StepMoment, Surroundings
from prunekit.pruning.asking import asked, lent_weights, losing
from prunekit.pruning.blocks import Finished
from prunekit.pruning.blockwise import Blockwise
from prunekit.pruning.change import Change, Kept
from prunekit.pruning.criterion import Criterion, locality_weight
from prunekit.pruning.guard import refuse_several_functions
from prunekit.pruning.proposal import Context
from prunekit.pruning.sample import Sample
from prunekit.pruning.scheduler import Scheduler, check_levels
from prunekit.pruning.selector import Selector
from prunekit.pruning.sequential import Sequential
from prunekit.pruning.start import Zeros, fitting, steps_without_effect, without_zeros
from prunekit.pruning.swapped import Swapped
from prunekit.pruning.ties import ties
from prunekit.records import Attempt, StepRecord, Target
from prunekit.statistics.estimate import DEFAULT_MEMORY
from prunekit.statistics.joint import JointModel
from prunekit.statistics.request import Estimates, Statistic
from prunekit.statistics.vanishing import vanished

Measure = Callable[[StepMoment, int], Mapping[str, float]]
"""Measures a proposal, given which attempt of its step it is, from 0."""


@dataclass(frozen=True)
class Outcome:
    """An attempt that is over.

    Attributes:
        attempt: What was tried, and whether it stayed.
        step: The step's row of the table, if it stayed.
        moment: The step as probes see it, if it stayed; valid until the next attempt.
        updated: Whether weights that stay have new values.
        saliency: What weights were chosen by, one vector over all of them, if it is wanted; -inf where they had gone.
    """

    attempt: Attempt
    step: StepRecord | None = None
    moment: StepMoment | None = None
    updated: bool = False
    saliency: Tensor | None = None


@dataclass(frozen=True)
class _Made:
    """A step that is ready to be applied."""

    statistics: Estimates
    change: Change | Swapped
    loss: float
    masks: dict[str, Tensor]
    predicted: float | None
    updated: bool
    saliency: Tensor | None = None


class Pruner:
    """Takes a model where its scheduler wants it, in place.

    Args:
        surroundings: The model, whose weights change and nothing else, the loss, and what builds statistics.
        criterion: Proposes.
        scheduler: Says how far, and what stays.
        selector: Spends each step's budget.
        lam: Locality weight λ, unless the scheduler sets one.
        prunable: Which weights; default the matrices that multiply inputs.
        measures: What the scheduler needs, by name.
        masks: What is pruned already, ``True`` = kept; what is not named is kept.
        zeros: Whether weights that are exactly zero when pruning starts count as pruned.
        wanted: At which steps the saliencies are wanted.
        sequential: Prune block by block.
        finished: Keeps the finished blocks of a step, by its number.

    Attributes:
        left_out: What is not prunable because of what it is, by role.
        warnings: What the user was warned of.

    Raises:
        SpecError: If there is nothing to prune or the schedule cannot be followed.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        criterion: Criterion,
        scheduler: Scheduler,
        selector: Selector,
        lam: float = 0.0,
        prunable: Prunable | None = None,
        measures: Mapping[str, Measure] | None = None,
        masks: Mapping[str, Tensor] | None = None,
        zeros: Zeros = "pruned",
        wanted: Callable[[int], bool] = lambda step: False,
        sequential: Sequential | None = None,
        finished: Callable[[int], Finished] | None = None,
    ) -> None:
        self._wanted, self._finished = wanted, finished
        self._chosen_by: Tensor | None = None
        self._surroundings = surroundings
        model, self._model, self._loss = surroundings.model, surroundings.model, surroundings.loss
        self.criterion, self.scheduler, self.selector, self.lam = criterion, scheduler, selector, lam
        self.parameters = prunable_parameters(model, prunable)
        refuse_inference_tensors(self.parameters)
        self.layers = layers_of(model, self.parameters)
        self.total = sum(layer.size for layer in self.layers)
        self.left_out = left_out(model, prunable)
        self.warnings: list[str] = []
        self.masks = fitting(model, self.parameters, masks)
        self.steps: list[StepRecord] = []
        """What has been done so far."""
        self._zeros: Zeros = zeros
        self._examined = False
        self._lost: list[str] = []
        self._least = 0  # weights that are pruned before the first step
        self._inner: list[int] = []  # budgets of steps that each block goes through by itself
        self._measures = measures or {}
        self._guarded = False
        self._experts = experts(model, self.parameters)
        self._planned = _levels(scheduler)
        self.levels = None if scheduler.adapts else self._planned
        """The whole schedule, where it is fixed."""
        budgets = [pruned_count(level, self.total) for level in self._planned]
        selector.check(self.layers, budgets)
        criterion.check(self.layers, budgets)
        plain = selector.name == "global" and selector.options == type(selector).Options()
        if not criterion.uses_selector and not plain:
            raise SpecError(
                f"prune.selector: criterion {criterion.name!r} chooses the masks itself, so a selector has no "
                "effect; leave it out, or let the criterion rank (selection: saliency, where it has that option)"
            )
        built = surroundings.estimators(criterion.required(lam))  # unknown ones are refused here
        self._blockwise: Blockwise | None = None
        self.costs: list[str] = []
        """What the statistics of a step will take, in words."""
        if sequential is None:
            notices = [e.check(self.layers, surroundings.memory or DEFAULT_MEMORY) for e in built.values()]
            self.costs = [notice for notice in notices if notice]
            return
        self._blockwise = Blockwise(
            surroundings, sequential, self.parameters, self.layers, self._warn, self._watch
        )
        self.costs = self._blockwise.check(criterion, lam, selector, budgets)
        if sequential.inputs == "pruned":
            if self.levels is None:
                raise SpecError(
                    f"prune.scheduler: {scheduler.name!r} decides after each step how far the next one goes, but with "
                    "sequential.inputs: pruned a block takes all its steps before the next block; take a fixed schedule, or "
                    "inputs: dense"
                )
            self._inner, self.levels = budgets, self.levels[-1:]

    def restore(self, masks: Mapping[str, Tensor], steps: Sequence[StepRecord] = ()) -> None:
        """Continue after earlier steps, with their masks; the model's weights are the caller's business."""
        self.steps = list(steps)
        self.masks = {n: masks[n].to(p.device) for n, p in self.parameters.items()}
        counts = pruned_counts(self.masks)
        self._lost, self._least = _whole(counts, self.masks), sum(counts.values())

    def outcomes(
        self, draw: Callable[[int], Sample], history: Sequence[Attempt] = (), done: int = 0
    ) -> Iterator[Outcome]:
        """Attempt after attempt, until the scheduler has what it wants.

        Args:
            draw: The sample of a step, by its index from 0; asked once for each step.
            history: The attempts of a run that goes on, where the scheduler adapts.
            done: Its steps; the masks are then those after the last.

        Raises:
            SpecError: If the schedule ends below what is pruned at the start; nothing has changed then.
            RunError: If a statistic, saliency, value or loss is not finite, naming the parameter; the model is then as
                before the step.
        """
        if not done:
            self._start()
        attempts = list(history)
        sample: Sample | None = None
        while (target := self._target(attempts, done)) is not None:
            if sample is None:
                sample = draw(done)
                # What earlier attempts of this step had estimated, in their order: later passes build on it.
                for attempt in attempts[::-1][: _trailing(attempts)][::-1]:
                    self._statistics(sample, *self._tuned(attempt.target))
            outcome = self._attempt(done, target, sample, attempts)
            attempts.append(outcome.attempt)
            if outcome.attempt.accepted:
                done, sample = done + 1, None
            yield outcome
            if outcome.moment is not None:
                outcome.moment.close()  # its statistics must not lie beside those of the next step
        if (
            self.scheduler.stopped(attempts) is None
            and attempts
            and not math.isfinite(attempts[-1].delta_loss)
        ):
            raise RunError(
                f"scheduler {self.scheduler.name!r} has given up: the loss changes by {attempts[-1].delta_loss} at "
                f"sparsity {attempts[-1].sparsity:.6g}{self._suspects()}; that step has been taken back"
            )

    def shortfall(self, history: Sequence[Attempt]) -> str | None:
        """How far the scheduler has come and why not as far as it was asked to, in words; ``None`` where it has."""
        stop = self.scheduler.stopped(history)
        if stop is None or not stop.short:
            return None
        reached = max((attempt.sparsity for attempt in history if attempt.accepted), default=0.0)
        return f"scheduler {self.scheduler.name!r} stopped short, at sparsity {reached:.6g}: {stop.why}"

    def _start(self) -> None:
        """Count what is pruned already, and say what counts and what does not."""
        unused = notable(self.left_out)
        if unused:
            self._warn("left out", f"{described(unused)}")
        masks = without_zeros(self.masks, self.parameters) if self._zeros == "pruned" else self.masks
        given, gone = (sum(pruned_counts(m).values()) for m in (self.masks, masks))
        idle = steps_without_effect(self._planned, gone, self.total)
        if gone > given:
            self._warn(
                "zeros",
                f"{gone - given} of {self.total} prunable weights are exactly zero at the start and count as pruned "
                "(with zeros: free they would not)",
            )
        if idle:
            self._warn(
                "scheduler",
                f"{gone} of {self.total} weights are pruned at the start, which is more than the first {idle} of "
                f"{len(self._planned)} steps ask for: these prune nothing",
            )
        self._least = gone
        self.masks = masks
        zero(self.parameters, {name: ~mask for name, mask in masks.items()})

    def _warn(self, kind: str, text: str) -> None:
        """Tell the user of something once, and keep it for the results."""
        if any(old.startswith(f"{kind}: ") for old in self.warnings):
            return
        self.warnings.append(f"{kind}: {text}")
        warnings.warn(f"{kind}: {text}", PrunekitWarning, stacklevel=2)

    def _target(self, attempts: Sequence[Attempt], done: int) -> Target | None:
        if self.levels is not None:
            return Target(self.levels[done]) if done < len(self.levels) else None
        target = self.scheduler.next(attempts)
        if target is None:
            return None
        try:
            (level,) = check_levels([target.sparsity])
            lam = None if target.lam is None else locality_weight(target.lam)
            if target.damping is not None and (lam is not None or locality_weight(target.damping) == 0):
                raise ValueError(f"damping must be > 0 and set without λ; found {target}")
        except ValueError as error:
            raise RunError(f"scheduler {self.scheduler.name!r}: {error}") from None
        gone = sum(pruned_counts(self.masks).values())
        if pruned_count(level, self.total) < gone and gone > self._least:  # at the start it cannot know
            raise RunError(
                f"scheduler {self.scheduler.name!r} asks for sparsity {level}, but {gone} of {self.total} weights are "
                "pruned already"
            )
        return Target(level, lam, target.damping)

    def _tuned(self, target: Target) -> tuple[Criterion, float]:
        """The criterion of an attempt, and its λ."""
        if target.damping is not None:
            return self.criterion.tuned(target.damping)
        return self.criterion, self.lam if target.lam is None else target.lam

    def _statistics(self, sample: Sample, criterion: Criterion, lam: float) -> Estimates:
        given = self._surroundings
        wanted = criterion.required(lam)
        if self._experts and not criterion.uses_selector:
            # What these ask for may not tell which experts examples have reached.
            wanted = wanted | {"gradient"}
        estimators = given.estimators(wanted)
        statistics = sample.estimate(
            given.model, given.loss, self.parameters, self.masks, estimators, given.memory
        )
        if not self._examined:
            self._examined = True
            silent = vanished(
                given.model, given.loss, lambda: sample.batches, estimators, statistics, self.masks
            )
            for name, reason in silent.items():
                self._warn(f"statistic {name}", reason)
            for request, tensors in statistics.items():
                if remark := getattr(tensors, "remark", ""):
                    self._warn(f"statistic {Statistic.of(request).name}", remark)
        return statistics

    def _watch(self, items: Items, kept: Tensor) -> None:
        """Look at a choice of the selector."""
        self._chosen_by = items.saliency
        try:
            text = ties(items, kept, self.selector)
        except RunError as error:
            raise RunError(f"criterion {self.criterion.name!r}: {error}") from None
        if text:
            self._warn("ties", text)

    def _suspects(self) -> str:
        """What in the network is not finite, in words."""
        named = [*self._model.named_parameters(), *self._model.named_buffers()]
        bad = [name for name, t in named if t.is_floating_point() and not bool(t.isfinite().all())]
        return (
            f"; {shortened(bad)} {'holds' if len(bad) == 1 else 'hold'} values that are not finite"
            if bad
            else ""
        )

    @taking_turns()
    def _attempt(self, index: int, target: Target, sample: Sample, history: Sequence[Attempt]) -> Outcome:
        started = time.perf_counter()
        criterion, lam = self._tuned(target)
        budget = max(pruned_count(target.sparsity, self.total), self._least)
        made = self._made(index, sample, criterion, lam, budget)
        change, before, masks, predicted = made.change, made.loss, made.masks, made.predicted
        model = partial(criterion.joint_model, lam)
        shown = partial(self._moment, index, sample, made, model, dict(self.masks))
        moment = shown("proposal")
        tries = _trailing(history)
        measured = {name: dict(measure_it(moment, tries)) for name, measure_it in self._measures.items()}
        try:
            change.apply()
            after = measure(self._model, sample.batches, self._loss)[0]
            attempt = Attempt(
                index + 1,
                target,
                budget / self.total,
                budget,
                lam,
                predicted,
                after - before,
                measured,
                seconds=time.perf_counter() - started,
            )
            attempt = distributed.from_first(attempt)
            attempt = replace(attempt, accepted=bool(self.scheduler.accept(attempt, history)))
            if attempt.accepted and not math.isfinite(attempt.delta_loss):
                raise RunError(
                    f"step {index + 1}: the loss is {after} after it and {before} before"
                    f"{self._suspects() or '; ' + losing(self.masks, masks)}; the step has been taken back"
                )
        except BaseException:
            change.undo()
            raise
        if not attempt.accepted:
            change.undo()
            return Outcome(attempt)
        self.masks = dict(masks)
        moment = shown("step", attempt.delta_loss)
        self.steps.append(self._record(attempt))
        return Outcome(attempt, self.steps[-1], moment, made.updated, made.saliency)

    def _made(self, index: int, sample: Sample, criterion: Criterion, lam: float, budget: int) -> _Made:
        """A step's change; block by block it may be in place already."""
        self._chosen_by = None
        if self._blockwise is not None:
            return self._made_by_blocks(index, sample, criterion, lam, budget)
        statistics, before = self._estimated(index, sample, criterion, lam)
        kept = Kept(self.parameters)
        proposal = asked(criterion, self._context(statistics, budget, lam, kept), kept)
        saliency = self._chosen_by if self._wanted(index + 1) else None
        self._chosen_by = None
        if not math.isfinite(before):  # after the proposal, whose errors say more
            raise RunError(
                f"step {index + 1}: the loss of the step's examples is {before} before it{self._suspects()}; nothing has "
                "been changed"
            )
        change = Change(self.parameters, self.masks, proposal.masks, proposal.values or {}, kept)
        predicted = proposal.predicted_delta_loss
        return _Made(
            statistics, change, before, dict(proposal.masks), predicted, proposal.values is not None, saliency
        )

    def _made_by_blocks(
        self, index: int, sample: Sample, criterion: Criterion, lam: float, budget: int
    ) -> _Made:
        assert self._blockwise is not None
        if not self._guarded:
            first = sample.batches[:1]
            refuse_several_functions(
                self._model, first, self._loss, measure(self._model, first, self._loss)[0], False
            )
            self._guarded = True
        # With pruned inputs a block goes through all steps by itself; those that ask for less than is gone do nothing.
        budgets = [b for b in self._inner if b > sum(pruned_counts(self.masks).values())] or [budget]
        # A step that may be taken back is made again with other numbers.
        finished = None if self._finished is None or self.scheduler.adapts else self._finished(index + 1)
        swept, change, loss = self._blockwise.sweep(
            sample, criterion, lam, self.selector, self.masks, budgets, finished
        )
        self._chosen_by = None
        if self._measures:  # which are of what a step would change
            change.undo()
        sample.know(loss)
        return _Made(Estimates(), change, loss, dict(swept.masks), swept.predicted, swept.updated)

    def _estimated(
        self, index: int, sample: Sample, criterion: Criterion, lam: float
    ) -> tuple[Estimates, float]:
        """A step's statistics and the loss before it; once, whether all paths to the loss agree."""
        try:
            statistics = self._statistics(sample, criterion, lam)
        except (RunError, UnsupportedError) as error:
            if suspects := self._suspects():
                raise RunError(f"step {index + 1}: {error}{suspects}") from error
            raise
        estimated = sample.has_loss
        before = sample.loss(self._model, self._loss)
        if not self._guarded and math.isfinite(before):
            if not sample.agreed:
                refuse_several_functions(self._model, sample.batches, self._loss, before, estimated)
                sample.agree()
            self._guarded = True
        return statistics, before

    def _context(self, statistics: Estimates, budget: int, lam: float, kept: Kept) -> Context:
        """What the criterion is asked with."""
        return Context(
            lent_weights(self.parameters, kept),
            statistics,
            dict(self.masks),
            budget,
            lam,
            self.selector,
            self.layers,
            {name: p.dtype for name, p in self.parameters.items()},
            self._watch,
            self._spared(statistics),
        )

    def _spared(self, statistics: Estimates) -> dict[str, Tensor]:
        """Weights of experts that no example of the step has reached."""
        if not self._experts:
            return {}
        silent = unreached(self._experts, statistics.values(), self.masks)
        if silent:
            self._warn(
                "experts",
                f"no example of the step has reached {shortened(named(silent))}, so nothing is known about their weights: "
                "they are left as they are. Take more examples, or different ones",
            )
        return {name: spread(which, self.masks[name]) for name, which in silent.items()}

    def _moment(
        self,
        index: int,
        sample: Sample,
        made: _Made,
        joint_model: Callable[[], JointModel | None],
        masks_before: Mapping[str, Tensor],
        name: str,
        delta_loss: float | None = None,
    ) -> StepMoment:
        return StepMoment(
            name,
            self._surroundings,
            made.masks,
            index + 1,
            sample.batches,
            made.statistics,
            made.change.before,
            made.change.after,
            made.predicted,
            made.loss,
            delta_loss,
            self.steps,
            lambda: sample.fresh,
            masks_before,
            joint_model,
        )

    def _record(self, attempt: Attempt) -> StepRecord:
        counts = pruned_counts(self.masks)
        lost = _whole(counts, self.masks)
        if new := [name for name in lost if name not in self._lost]:
            self._warn(f"step {attempt.step}", f"every weight of {shortened(new)} is pruned now")
        self._lost = lost
        return StepRecord(
            step=attempt.step,
            target_sparsity=attempt.target_sparsity,
            sparsity=attempt.sparsity,
            pruned=attempt.pruned,
            remaining=self.total - attempt.pruned,
            predicted_delta_loss=attempt.predicted_delta_loss,
            delta_loss=attempt.delta_loss,
            layers={name: count / self.masks[name].numel() for name, count in counts.items()},
            seconds=attempt.seconds,
        )


def _whole(counts: Mapping[str, int], masks: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters that are pruned to the last weight."""
    return [name for name, count in counts.items() if count == masks[name].numel()]


def _levels(scheduler: Scheduler) -> list[float]:
    """What is known beforehand of the levels."""
    try:
        planned = scheduler.planned()
        return check_levels(planned) if planned or not scheduler.adapts else []
    except ValueError as error:
        raise SpecError(f"scheduler: {error}") from None


def _trailing(attempts: Sequence[Attempt]) -> int:
    """How many attempts since the last that stayed."""
    count = 0
    for attempt in reversed(attempts):
        if attempt.accepted:
            break
        count += 1
    return count
