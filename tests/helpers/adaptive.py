"""Schedulers that take steps back, a probe that looks at every step, and a criterion that can go too far."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import ClassVar

import torch

import prunekit as pk


class EveryOther(pk.Scheduler):
    """A linear schedule of which every other attempt is taken back."""

    name = "every_other"

    class Options(pk.Options):
        sparsity: float = 0.75
        steps: int = 3

    def levels(self) -> list[float]:
        return [self.options.sparsity * i / self.options.steps for i in range(1, self.options.steps + 1)]

    def accept(self, attempt: pk.Attempt, history: Sequence[pk.Attempt]) -> bool:
        return len(history) % 2 == 1


class Tightening(EveryOther):
    """The same, with a tenth of a λ more at each attempt of a step."""

    name = "tightening"

    def next(self, history: Sequence[pk.Attempt]) -> pk.Target | None:
        target = super().next(history)
        tries = 0
        for attempt in reversed(history):
            if attempt.accepted:
                break
            tries += 1
        return None if target is None else pk.Target(target.sparsity, lam=0.1 * tries)


class Halving(pk.Scheduler):
    """One step to the sparsity asked for; half as far from where it stands while the loss is not finite."""

    name = "halving"

    class Options(pk.Options):
        sparsity: float = 0.5

    def next(self, history: Sequence[pk.Attempt]) -> pk.Target | None:
        here, goal = 0.0, self.options.sparsity
        for attempt in history:
            if attempt.accepted:
                here, goal = attempt.target.sparsity, self.options.sparsity
            else:
                goal = (here + attempt.target.sparsity) / 2
        return pk.Target(goal) if here < self.options.sparsity else None

    def accept(self, attempt: pk.Attempt, history: Sequence[pk.Attempt]) -> bool:
        return abs(attempt.delta_loss) < float("inf")


class Careful(EveryOther):
    """The same as ``every_other``, with a look at each proposal."""

    name = "careful"
    needs: ClassVar[frozenset[str]] = frozenset({"size"})


class Size(pk.Probe):
    """The norm of the step, and what it does to the loss."""

    name = "size"
    moments: ClassVar = ("step",)

    def measure(self, moment: pk.Moment, generator: torch.Generator) -> pk.ProbeRecord:
        assert isinstance(moment, pk.StepMoment)
        change = moment.change()
        norm = float(sum(c.double().square().sum() for c in change.values())) ** 0.5
        before, after = moment.before(), moment.weights()
        found = {"norm": norm, "before": moment.loss(before), "now": moment.loss(after)}
        groups = {"size": {"change": pk.Series([norm], ("what",), "weights")}}
        return pk.ProbeRecord(groups, found)


class Everywhere(pk.Probe):
    """Where it is asked, with a draw."""

    name = "everywhere"
    moments: ClassVar = ("dense", "step", "pruned", "finetuned", "end")

    def measure(self, moment: pk.Moment, generator: torch.Generator) -> pk.ProbeRecord:
        torch.rand(3)  # the process's own random state is nobody's business
        drawn = float(torch.rand(1, generator=generator))
        train = moment.split("train", 20)
        assert train is not None
        found = {"drawn": drawn, "loss": moment.loss(data=train), "phases": len(moment.phases)}
        return pk.ProbeRecord({"drawn": {"value": pk.Series([drawn], ("draw",))}}, found)


class TooFar(pk.Criterion):
    """Magnitude, with survivors that are blown up where more than a third of all weights go at once."""

    name = "too_far"

    def propose(self, context: pk.Context) -> pk.Proposal:
        masks = context.select(self.scores(context))
        gone = sum(int((~m).sum()) for m in context.masks.values())
        total = sum(m.numel() for m in masks.values())
        scale = 1e308 if context.budget - gone > total / 3 else 1.0
        return pk.Proposal(masks, {name: w * scale for name, w in context.weights.items()}, 0.0)

    def saliency(self, weights, statistics):  # type: ignore[no-untyped-def]
        return {name: w.abs() for name, w in weights.items()}


plugin = SimpleNamespace(
    __name__="adaptive",
    prunekit_register_schedulers=pk.hookimpl(lambda: [EveryOther, Tightening, Halving, Careful]),
    prunekit_register_probes=pk.hookimpl(lambda: [Size, Everywhere]),
    prunekit_register_criteria=pk.hookimpl(lambda: [TooFar]),
)
