"""Components that break a promise each: kind to a name, the component, and the checks that must catch it."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import field_serializer
from torch import Tensor, nn

import prunekit as pk

Case = tuple[Any, str]


def variant(base: type, **attributes: Any) -> Any:
    """A component with some attributes replaced."""
    return type("Bad", (base,), attributes)()


def with_factor(self: Any, **options: Any) -> None:
    super(type(self), self).__init__(**options)
    self.factor = 2.0


# -- criteria ---------------------------------------------------------------------------------------------------


class Criterion(pk.Criterion):
    """|g·θ|."""

    name = "good"
    requires = frozenset({"gradient"})

    def saliency(self, weights: Any, statistics: Any) -> Any:
        return {k: (w * statistics["gradient"][k]).abs() for k, w in weights.items()}


def criterion(**attributes: Any) -> Any:
    return variant(Criterion, **attributes)


def saliency(formula: Callable[[Any, Any], Any]) -> Any:
    return criterion(
        saliency=lambda self, weights, statistics: {
            k: formula(w, statistics["gradient"][k]) for k, w in weights.items()
        }
    )


def proposing(change: Callable[[pk.Context, pk.Proposal], pk.Proposal], **attributes: Any) -> Any:
    """The good criterion with something done to its proposals."""
    return criterion(
        propose=lambda self, context: change(context, Criterion.propose(self, context)), **attributes
    )


class AnyPower(pk.Options):
    power: Any = 2.0


class Thawed(pk.Options, frozen=False):
    power: float = 2.0


class Lenient(pk.Options, extra="ignore"):
    power: float = 2.0


class Growing(pk.Options):
    power: float = 2.0

    @field_serializer("power")
    def grow(self, power: float) -> float:
        return power + 1


class OwnLambda(pk.Options):
    lam: float = 0.0


def zeroing(w: Any, g: Any) -> Any:
    w.zero_()
    return g.abs()


def there_and_back(w: Any, g: Any) -> Any:
    w.add_(0)
    return (w * g).abs()


def new_dtype(w: Any, g: Any) -> Any:
    torch.set_default_dtype(torch.float16)
    return (w * g).abs()


def tidying_up_late(self: Any, weights: Any, statistics: Any) -> Any:
    first = next(iter(weights.values()))
    first.add_(1)
    found = {k: w.abs() for k, w in weights.items()}
    first.sub_(1)
    return found


def proposing_tidied_up_late(self: Any, context: pk.Context) -> pk.Proposal:
    first = next(iter(context.weights.values()))
    first.add_(1)
    found = Criterion.propose(self, context)
    first.sub_(1)
    return found


def ignoring_the_budget(context: pk.Context, good: pk.Proposal) -> pk.Proposal:
    return pk.Proposal(context.masks)


def reviving(context: pk.Context, good: pk.Proposal) -> pk.Proposal:
    flat = (
        torch.cat([m.flatten() for m in good.masks.values()])
        .roll(1)
        .split([m.numel() for m in good.masks.values()])
    )
    return pk.Proposal({k: part.view_as(m) for (k, m), part in zip(good.masks.items(), flat, strict=True)})


def unmasking(context: pk.Context, good: pk.Proposal) -> pk.Proposal:
    for mask in context.masks.values():
        mask.fill_(True)
    return good


def dicing(context: pk.Context, good: pk.Proposal) -> pk.Proposal:
    return pk.Proposal(context.select({k: torch.rand_like(w) for k, w in context.weights.items()}))


def peeking(context: pk.Context, good: pk.Proposal) -> pk.Proposal:
    if "ggn_diagonal" in context.statistics:
        return pk.Proposal(good.masks, {k: 0 * w for k, w in context.weights.items()})
    return good


def too_far(context: pk.Context, good: pk.Proposal) -> pk.Proposal:
    return pk.Proposal(good.masks, {k: w * 1e30 for k, w in context.weights.items()})


def values(**of: Callable[[Any], Any]) -> Any:
    (formula,) = of.values()
    return proposing(lambda c, good: pk.Proposal(good.masks, {k: formula(w) for k, w in c.weights.items()}))


def elsewhere_update(self: Any, w: Any, s: Any, m: Any) -> Any:
    return {"elsewhere": torch.zeros(1)}


def _from_the_mean_of_all(self: Any, weights: Any, statistics: Any) -> dict[str, Tensor]:
    mean = torch.cat([w.flatten() for w in weights.values()]).mean()
    return {name: (w - mean).abs() for name, w in weights.items()}


CRITERIA: dict[str, Case] = {
    "no name": (criterion(name=""), "has a name"),
    "two words": (criterion(name="two words"), "has a name"),
    "untyped option": (
        criterion(Options=AnyPower),
        "options are typed and frozen and refuse unknown keys",
    ),
    "options that change": (
        criterion(Options=Thawed),
        "options are typed and frozen and refuse unknown keys",
    ),
    "options that swallow": (
        criterion(Options=Lenient),
        "options are typed and frozen and refuse unknown keys",
    ),
    "options that grow": (criterion(Options=Growing), "options survive the results file"),
    "own lambda": (criterion(Options=OwnLambda), "options leave the engines keys to the engine"),
    "of version 0.1": (
        criterion(select=lambda self, w, s, m, budget: dict(m)),
        "is written for this version",
    ),
    "requires a list": (criterion(requires=["gradient"]), "required statistics exist"),
    "unknown statistic": (criterion(requires=frozenset({"gradientt"})), "required statistics exist"),
    "damps a little": (criterion(damps=0.5), "damps is yes or no"),
    "weighs layers together": (
        criterion(saliency=_from_the_mean_of_all),
        "layers that are not weighed together may be asked block by block",
    ),
    "wrong shape": (
        saliency(lambda w, g: g.sum()),
        "saliency has the weights names shapes and device",
    ),
    "no names": (
        criterion(saliency=lambda self, w, s: {}),
        "saliency has the weights names shapes and device",
    ),
    "whole numbers": (
        saliency(lambda w, g: w.long()),
        "saliency has the weights names shapes and device",
    ),
    "not finite": (saliency(lambda w, g: g / (w - w)), "saliency is finite"),
    "normalised by zero": (
        saliency(lambda w, g: w.abs() / w.norm()),
        "saliency is finite where a whole layer is zero",
    ),
    "in place": (saliency(zeroing), "saliency leaves its inputs and the process alone"),
    "in place to the same value": (
        saliency(there_and_back),
        "saliency leaves its inputs and the process alone",
    ),
    "global random state": (
        saliency(lambda w, g: torch.rand_like(w)),
        "saliency leaves its inputs and the process alone",
    ),
    "default dtype": (saliency(new_dtype), "saliency leaves its inputs and the process alone"),
    "in place on error": (
        criterion(saliency=tidying_up_late),
        "saliency leaves its inputs and the process alone when it fails",
    ),
    "random": (saliency(lambda w, g: torch.rand_like(w)), "saliency is deterministic"),
    "predicts NaN": (
        criterion(predicted_delta_loss=lambda self, w, s, m: float("nan")),
        "predicted delta loss is a finite number or none",
    ),
    "predicts at random": (
        criterion(predicted_delta_loss=lambda self, w, s, m: np.random.default_rng().random()),
        "predicted delta loss is a finite number or none",
    ),
    "predicts a change for nothing": (
        criterion(predicted_delta_loss=lambda self, w, s, m: 1.0),
        "predicted delta loss of no change is zero",
    ),
    "updates to NaN": (
        criterion(update=lambda self, w, s, m: {k: v / 0 for k, v in w.items()}),
        "update gives finite values for the surviving weights",
    ),
    "updates what is not there": (
        criterion(update=elsewhere_update),
        "update gives finite values for the surviving weights",
    ),
    "random update": (
        criterion(update=lambda self, w, s, m: {k: torch.rand_like(v) for k, v in w.items()}),
        "update is deterministic",
    ),
    "ignores the budget": (
        proposing(ignoring_the_budget),
        "proposed masks are nested and spend the exact budget",
    ),
    "revives": (proposing(reviving), "proposed masks are nested and spend the exact budget"),
    "proposes NaN": (values(of=lambda w: w / 0), "proposed values are finite and fit"),
    "proposes a scalar": (values(of=lambda w: w.sum()), "proposed values are finite and fit"),
    "changes the masks": (proposing(unmasking), "proposals leave their inputs and the process alone"),
    "changes weights when it fails": (
        criterion(propose=proposing_tidied_up_late),
        "proposals leave their inputs and the process alone when they fail",
    ),
    "throws dice": (proposing(dicing), "proposals are deterministic"),
    "needs its __init__": (
        criterion(
            __init__=with_factor,
            saliency=lambda self, w, s: {k: self.factor * v.abs() for k, v in w.items()},
        ),
        "the engine builds the same criterion from the options",
    ),
    "proposes what was lent": (values(of=lambda w: w), "proposals own their memory"),
    "predicts something else": (
        proposing(
            lambda c, good: pk.Proposal(good.masks, None, 3.0),
            predicted_delta_loss=lambda self, w, s, m: 0.0,
        ),
        "predictions are finite numbers and fit the proposal",
    ),
    "predicts infinity": (
        proposing(lambda c, good: pk.Proposal(good.masks, None, float("inf"))),
        "predictions are finite numbers and fit the proposal",
    ),
    "peeks": (proposing(peeking), "proposes the same from nothing but what it requires"),
    "wants more than it reads": (
        criterion(requires=frozenset({"gradient", "uniform"})),
        "reads every statistic that it requires",
    ),
    "smallest of none": (
        saliency(lambda w, g: (w * g).abs() - w.min()),
        "copes with a layer without weights",
    ),
    "deviation of one": (
        saliency(lambda w, g: (w * g).abs() / w.std() if w.numel() else w),
        "copes with a layer of one weight",
    ),
    "range of equals": (
        saliency(lambda w, g: w.abs() / (w.max() - w.min()) if w.numel() else w),
        "copes with weights that are all equal",
    ),
    "norm of zeros": (
        saliency(lambda w, g: w.abs() / w.norm()),
        "copes with a layer that is all zero",
    ),
    "smallest that stays": (
        proposing(
            lambda c, good: pk.Proposal(
                good.masks, None, sum(float(w[c.masks[k]].min()) for k, w in c.weights.items())
            )
        ),
        "copes with a layer that is gone",
    ),
    "goes too far": (proposing(too_far), "prunes a network and leaves the rest of it alone"),
}


class Whole(Criterion):
    """A criterion with every optional method."""

    def update(self, weights: Any, statistics: Any, masks: Any) -> Any:
        return {k: 2 * w / masks[k] for k, w in weights.items()}  # inf where a weight goes

    def predicted_delta_loss(self, weights: Any, statistics: Any, masks: Any) -> float:
        return sum(float(w[~masks[k]].sum()) for k, w in weights.items())


# -- schedulers -------------------------------------------------------------------------------------------------


class Fixed(pk.Scheduler):
    """Half of everything in two steps."""

    name = "fixed"

    class Options(pk.Options):
        sparsity: float = 0.5

    def levels(self) -> list[float]:
        return [0.25, 0.5]


class Adaptive(pk.Scheduler):
    """A tenth more at each step; half as far after one that raises the loss."""

    name = "adaptive"

    def next(self, history: Any) -> Any:
        here = max((a.target.sparsity for a in history if a.accepted), default=0.0)
        tries = 0
        for attempt in reversed(history):
            if attempt.accepted:
                break
            tries += 1
        return None if here >= 0.5 or tries > 20 else pk.Target(here + 0.1 / 2**tries)

    def accept(self, attempt: Any, history: Any) -> bool:
        return bool(attempt.delta_loss < 0.1)


def fixed(**attributes: Any) -> Any:
    return variant(Fixed, **attributes)


def adaptive(**attributes: Any) -> Any:
    return variant(Adaptive, **attributes)


def counting(self: Any, history: Any) -> Any:
    self.calls = getattr(self, "calls", 0) + 1
    return pk.Target(min(0.9, 0.1 * self.calls)) if self.calls % 9 else None


def forgetting(self: Any, history: Any) -> Any:
    target = Adaptive.next(self, history)
    history.clear()
    return target


def drawing(self: Any, history: Any) -> Any:
    random.random()
    return Adaptive.next(self, history)


def doubting(self: Any, attempt: Any, history: Any) -> Any:
    return None if attempt.delta_loss != attempt.delta_loss else Adaptive.accept(self, attempt, history)


SCHEDULERS: dict[str, Case] = {
    "falls": (fixed(levels=lambda self: [0.5, 0.25]), "levels lie below one and never fall"),
    "takes all": (fixed(levels=lambda self: [0.5, 1.0]), "levels lie below one and never fall"),
    "none": (fixed(levels=lambda self: []), "levels lie below one and never fall"),
    "draws levels": (
        fixed(levels=lambda self: [random.random() / 2, 0.5]),
        "levels are the same twice",
    ),
    "needs its __init__": (
        fixed(__init__=with_factor, levels=lambda self: [self.factor / 10, 0.5]),
        "levels are the same twice",
    ),
    "stops early": (
        fixed(levels=lambda self: [0.25, 0.49999]),
        "the last level is the sparsity asked for",
    ),
    "needs nothing": (adaptive(needs=frozenset({"nothing"})), "what it needs exists"),
    "needs a list": (adaptive(needs=["line"]), "what it needs exists"),
    "too sparse": (adaptive(next=lambda self, history: pk.Target(1.5)), "targets are valid"),
    "goes back": (
        adaptive(
            next=lambda self, history: pk.Target(0.5 - 0.1 * len(history)) if len(history) < 4 else None
        ),
        "targets are valid",
    ),
    "negative lambda": (
        adaptive(next=lambda self, history: pk.Target(0.5, lam=-1.0) if not history else None),
        "targets are valid",
    ),
    "a level, no target": (adaptive(next=lambda self, history: 0.5), "targets are valid"),
    "does not know": (adaptive(accept=doubting), "accept says yes or no"),
    "counts": (adaptive(next=counting), "answers depend on the history alone"),
    "accepts at random": (
        adaptive(accept=lambda self, attempt, history: random.random() < 0.5),
        "answers depend on the history alone",
    ),
    "forgets": (adaptive(next=forgetting), "leaves the history and the process alone"),
    "draws": (adaptive(next=drawing), "leaves the history and the process alone"),
    "goes on for ever": (
        adaptive(next=lambda self, history: pk.Target(0.5)),
        "comes to an end when it gets all that it asks for",
    ),
    "does nothing": (adaptive(next=lambda self, history: None), "prunes a network as far as it wants"),
}


# -- selectors --------------------------------------------------------------------------------------------------


class Selector(pk.Selector):
    """The smallest go."""

    name = "good"

    def select(self, items: Any, budget: int) -> Any:
        return items.without_cheapest(budget)


def selecting(select: Callable[[Any, int], Any], **attributes: Any) -> Any:
    return variant(Selector, select=lambda self, items, budget: select(items, budget), **attributes)


def ranked(items: Any, budget: int, scores: Any) -> Any:
    """All but the first by other scores; what is gone goes first."""
    kept = torch.ones_like(items.open)
    kept[scores.masked_fill(~items.open, -torch.inf).argsort(stable=True)[:budget]] = False
    return kept


def later_first(items: Any, budget: int) -> Any:
    kept = torch.ones_like(items.open)
    order = items.saliency.flip(0).argsort(stable=True)[:budget]
    kept[len(kept) - 1 - order] = False
    return kept


def zeroing_items(items: Any, budget: int) -> Any:
    kept = items.without_cheapest(budget)
    items.saliency.zero_()
    return kept


def scaled(items: Any, budget: int) -> Any:
    open_ = items.saliency[items.open]
    scale = items.saliency / (open_.max() - open_.min())
    return (
        ~((scale <= scale[items.open].sort().values[budget - items.gone - 1]) | ~items.open)
        if budget > items.gone
        else items.open.clone()
    )


def halves(items: Any, budget: int) -> Any:
    for layer in items.layers:
        items.saliency[layer.part].view(2, -1)
    return items.without_cheapest(budget)


def means(items: Any, budget: int) -> Any:
    for layer in items.layers:
        items.saliency[layer.part][items.open[layer.part]].min()
    return items.without_cheapest(budget)


def complaining(self: Any, layers: Any, budgets: Any) -> None:
    if len(layers) == 1:
        raise ValueError("one layer")


SELECTORS: dict[str, Case] = {
    "numbers": (
        selecting(lambda items, budget: items.without_cheapest(budget).double()),
        "choices are a bool for each item",
    ),
    "one too many": (
        selecting(lambda items, budget: items.without_cheapest(budget + 1)),
        "choices spend the exact budget",
    ),
    "revives": (
        selecting(lambda items, budget: items.without_cheapest(budget).roll(1)),
        "choices are nested",
    ),
    "at random": (
        selecting(lambda items, budget: ranked(items, budget, torch.rand(len(items.open)))),
        "choices are the same twice",
    ),
    "needs its __init__": (
        variant(
            Selector,
            __init__=with_factor,
            select=lambda self, items, budget: items.without_cheapest(budget + 0 * int(self.factor)),
        ),
        "choices are the same twice",
    ),
    "later first": (selecting(later_first), "of equal saliencies the earlier item goes first"),
    "in place": (selecting(zeroing_items), "items and the process are left alone"),
    "scaled by nothing": (selecting(scaled), "copes with saliencies that are all equal"),
    "in halves": (selecting(halves), "copes with a layer of one weight"),
    "means of none": (selecting(means), "copes with a layer that is gone"),
    "complains": (variant(Selector, check=complaining), "check refuses by a spec error or not at all"),
}


# -- statistics -------------------------------------------------------------------------------------------------


class Statistic(pk.Estimator):
    """The gradient."""

    name = "good"

    def start(self, problem: Any) -> None:
        self.problem, self.sums, self.seen = problem, problem.zeros(), 0

    def gradients(self, batch: Any) -> Any:
        parameters = self.problem.parameters
        found = torch.autograd.grad(
            batch.total, list(parameters.values()), retain_graph=batch.needed_again, allow_unused=True
        )
        return {
            k: torch.zeros_like(p) if g is None else g
            for (k, p), g in zip(parameters.items(), found, strict=True)
        }

    def add(self, batch: Any) -> None:
        self.seen += 1
        for name, g in self.gradients(batch).items():
            self.sums[name] += g

    def finish(self, normaliser: float) -> Any:
        return {name: s / normaliser for name, s in self.sums.items()}


def statistic(**attributes: Any) -> Any:
    return variant(Statistic, **attributes)


def finishing(formula: Callable[[Any, str, Any], Any]) -> Any:
    """The good statistic with something done to each tensor."""
    return statistic(
        finish=lambda self, n: {k: formula(self, k, v) for k, v in Statistic.finish(self, n).items()}
    )


def mean_of_means(self: Any, batch: Any) -> None:
    self.seen += 1
    for name, g in self.gradients(batch).items():
        self.sums[name] += g / batch.normaliser


def first_twice(self: Any, batch: Any) -> None:
    Statistic.add(self, batch)
    if self.seen == 1:
        outputs = batch.outputs[:1]
        total = self.problem.loss.total(outputs, batch.targets[:1])
        for name, g in zip(
            self.sums,
            torch.autograd.grad(
                total, list(self.problem.parameters.values()), retain_graph=True, allow_unused=True
            ),
            strict=True,
        ):
            self.sums[name] += 0 if g is None else g


def first_slice(self: Any, batch: Any) -> None:
    if not self.seen:
        Statistic.add(self, batch)


def with_gradients(self: Any, batch: Any) -> None:
    Statistic.add(self, batch)
    batch.total.backward(retain_graph=True)


def with_hook(self: Any, problem: Any) -> None:
    Statistic.start(self, problem)
    self.handle = problem.model.register_forward_hook(lambda *_: None)


def without_hook(self: Any, normaliser: float) -> Any:
    self.handle.remove()
    return Statistic.finish(self, normaliser)


STATISTICS: dict[str, Case] = {
    "sums up": (finishing(lambda self, k, v: v.sum()), "gives a tensor of its shape for each parameter"),
    "half": (finishing(lambda self, k, v: v.half()), "gives a tensor of its shape for each parameter"),
    "not finite": (finishing(lambda self, k, v: v / 0), "gives a tensor of its shape for each parameter"),
    "one missing": (
        statistic(finish=lambda self, n: dict(list(self.sums.items())[1:])),
        "gives a tensor of its shape for each parameter",
    ),
    "at random": (finishing(lambda self, k, v: v + torch.rand_like(v)), "is the same twice"),
    "needs its __init__": (
        statistic(
            __init__=with_factor, finish=lambda self, n: {k: v * self.factor for k, v in self.sums.items()}
        ),
        "the engine builds the same statistic from the options",
    ),
    "counts": (
        finishing(lambda self, k, v: v + torch.arange(v.numel()).view_as(v)),
        "what an unused parameter gets is zero",
    ),
    "mean of means": (
        statistic(add=mean_of_means, finish=lambda self, n: {k: v / self.seen for k, v in self.sums.items()}),
        "does not depend on how batches are cut",
    ),
    "first example twice": (
        statistic(add=first_twice),
        "does not depend on the order of the examples",
    ),
    "sum": (
        statistic(finish=lambda self, n: self.sums),
        "does not change when every example is there twice",
    ),
    "first slice": (statistic(add=first_slice), "does not depend on how much memory there is"),
    "leaves gradients": (
        statistic(add=with_gradients),
        "leaves the model its data and the process alone",
    ),
    "leaves a hook": (statistic(start=with_hook), "leaves the model its data and the process alone"),
    "leaves a hook when it fails": (
        statistic(start=with_hook, finish=without_hook),
        "leaves the model and the process alone when it fails",
    ),
    "weights": (
        finishing(lambda self, k, v: self.problem.parameters[k].detach()),
        "what it gives is its own",
    ),
    "costs three": (statistic(check=lambda self, layers, budget: 3), "check tells the cost in words"),
}


# -- losses -----------------------------------------------------------------------------------------------------


class Loss(pk.Loss):
    """Squared error."""

    name = "good"

    def total(self, outputs: Any, targets: Any) -> Any:
        return (outputs - targets.view_as(outputs)).square().sum()

    def normaliser(self, outputs: Any, targets: Any) -> float:
        return float(outputs.numel())

    def ggn_factor(self, outputs: Any, targets: Any) -> Iterator[Any]:
        for k in range(outputs[0].numel()):
            column = torch.zeros_like(outputs).flatten(1)
            column[:, k] = 2**0.5
            yield column.view_as(outputs)


def loss(**attributes: Any) -> Any:
    return variant(Loss, **attributes)


def clamping(self: Any, outputs: Any, targets: Any) -> Any:
    targets.clamp_(min=0.5)
    return Loss.total(self, outputs, targets)


def mixing(self: Any, outputs: Any, targets: Any) -> Any:
    yield torch.full_like(outputs, 2**0.5)


LOSSES: dict[str, Case] = {
    "a vector": (
        loss(total=lambda self, o, t: (o - t.view_as(o)).square().sum(0)),
        "total is a differentiable scalar",
    ),
    "a mean for a total": (
        loss(total=lambda self, o, t: (o - t.view_as(o)).square().mean()),
        "total and normaliser add up over batches",
    ),
    "one for a normaliser": (
        loss(normaliser=lambda self, o, t: 1.0),
        "total and normaliser add up over batches",
    ),
    "another mean": (
        loss(mean=lambda self, o, t: self.total(o, t)),
        "mean is the total over the normaliser",
    ),
    "overflows": (
        loss(total=lambda self, o, t: (o - t.view_as(o)).square().exp().sum()),
        "loss and gradient are finite for large outputs",
    ),
    "in place": (loss(total=clamping), "outputs targets and the process are left alone"),
    "needs its __init__": (
        loss(__init__=with_factor, total=lambda self, o, t: self.factor * Loss.total(self, o, t)),
        "the engine builds the same loss from the options",
    ),
    "mixes terms": (loss(ggn_factor=mixing), "ggn factor gives the hessian in the outputs"),
    "promises fewer columns": (
        loss(ggn_rank=lambda self, o, t: 0),
        "ggn factor gives the hessian in the outputs",
    ),
    "half the gradient": (
        loss(term_gradients=lambda self, o, t: iter([o - t.view_as(o)])),
        "term gradients sum to the gradient",
    ),
    "draws too far": (
        loss(draw=lambda self, o, t, generator: 2 * pk.Loss.draw(self, o, t, generator)),
        "draws have mean zero and the hessian as second moment",
    ),
    "draws from elsewhere": (
        loss(draw=lambda self, o, t, generator: 2**0.5 * torch.randn_like(o)),
        "draws have mean zero and the hessian as second moment",
    ),
    "more wrong than there are": (
        loss(errors=lambda self, o, t: (torch.tensor(13), 12)),
        "errors are counts in range",
    ),
}


# -- probes -----------------------------------------------------------------------------------------------------


class Probe(pk.Probe):
    """The loss, with a draw."""

    name = "good"
    moments: ClassVar = ("dense", "step", "end")

    def measure(self, moment: Any, generator: Any) -> pk.ProbeRecord:
        found = {
            "loss": moment.loss(data=moment.split("train")),
            "drawn": float(torch.rand(1, generator=generator)),
        }
        return pk.ProbeRecord({"here": {k: pk.Series([v], ("point",)) for k, v in found.items()}}, found)


def measuring(measure: Callable[[Any], Any], **attributes: Any) -> Any:
    return variant(Probe, measure=lambda self, moment, generator: measure(moment), **attributes)


def series(values: Any, *axes: str) -> pk.ProbeRecord:
    return pk.ProbeRecord({"here": {"what": pk.Series(values, axes)}}, {})


def pushing(moment: Any) -> pk.ProbeRecord:
    with torch.no_grad():
        next(moment._model.parameters()).add_(1)
    return pk.ProbeRecord({}, {})


PROBES: dict[str, Case] = {
    "never": (measuring(lambda moment: None, moments=("never",)), "its moments are moments"),
    "a table": (measuring(lambda moment: {"loss": 1.0}), "a record is plain data"),
    "no JSON": (measuring(lambda moment: pk.ProbeRecord({}, {"x": object()})), "a record is plain data"),
    "version zero": (
        measuring(lambda moment: pk.ProbeRecord({}, {}, kind_version=0)),
        "a record is plain data",
    ),
    "an axis too few": (
        measuring(lambda moment: series([[1.0, 2.0]], "point")),
        "arrays have as many axes as dimensions",
    ),
    "an axis twice": (
        measuring(lambda moment: series([[1.0, 2.0]], "point", "point")),
        "arrays have as many axes as dimensions",
    ),
    "at random": (
        measuring(lambda moment: series([float(torch.rand(1))], "point")),
        "measuring twice gives the same",
    ),
    "pushes": (measuring(pushing), "measuring leaves everything alone"),
    "draws": (
        measuring(lambda moment: series([float(torch.rand(1))], "point")),
        "measuring leaves everything alone",
    ),
}


# -- recorders --------------------------------------------------------------------------------------------------


class Recorder(pk.Recorder):
    """Writes a line for each step."""

    name = "good"

    def started(self, run: Any) -> None:
        run.out.with_suffix(".txt").write_text("".join(f"{s.step}\n" for s in run.steps))

    def step_finished(self, run: Any, step: Any) -> None:
        with run.out.with_suffix(".txt").open("a") as file:
            file.write(f"{step.step}\n")


def emptying(self: Any, run: Any, step: Any) -> None:
    run.steps.clear()


def refusing(self: Any, run: Any) -> None:
    with run.out.open("x"):
        pass


RECORDERS: dict[str, Case] = {
    "takes no steps": (
        variant(Recorder, step_finished=lambda self, run: None),
        "follows a run from start to end",
    ),
    "empties": (variant(Recorder, step_finished=emptying), "leaves the run and the process alone"),
    "overwrites masks": (
        variant(Recorder, step_finished=lambda self, run, step: run.masks["0.weight"].fill(0)),
        "leaves the run and the process alone",
    ),
    "starts once": (variant(Recorder, started=refusing), "goes on after an interruption"),
    "waits for a step": (
        variant(Recorder, finished=lambda self, run: run.steps[-1]),
        "takes a run that fails",
    ),
}


# -- executors --------------------------------------------------------------------------------------------------


class Running(pk.Worker):
    """A process."""

    def __init__(self, command: tuple[str, ...], log: Path) -> None:
        self.log = log
        with open(log, "w") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def said(self) -> str:
        return self.log.read_text()


class Executor(pk.Executor):
    """Starts processes."""

    name = "good"

    def start(self, job: Any, index: int) -> pk.Worker:
        return Running(job.command, job.folder / "log.txt")


def starting(worker: type[Running]) -> Any:
    return variant(Executor, start=lambda self, job, index: worker(job.command, job.folder / "log.txt"))


class Twice(Running):
    def __init__(self, command: tuple[str, ...], log: Path) -> None:
        subprocess.run(command, check=False)
        super().__init__(command, log)


class Content(Running):
    def poll(self) -> int | None:
        return None if super().poll() is None else 0


class Positive(Running):
    def poll(self) -> int | None:
        code = super().poll()
        return code if code is None else abs(code)


class Deaf(Running):
    def stop(self) -> None:
        type(self).left = self.process

    left: Any = None


EXECUTORS: dict[str, Case] = {
    "starts two": (starting(Twice), "runs a worker to its end"),
    "is content": (starting(Content), "tells a failure from an end"),
    "counts a kill as a failure": (starting(Positive), "tells that a worker was killed"),
    "does not stop": (starting(Deaf), "stops a worker"),
}


# -- metrics ----------------------------------------------------------------------------------------------------


class Metric(pk.Metric):
    """How large the outputs are."""

    name = "good"

    def sums(self, outputs: Any, targets: Any, loss: Any) -> Any:
        return torch.stack(
            [outputs.double().abs().sum(), torch.tensor(float(outputs.numel()), dtype=torch.float64)]
        )

    def value(self, sums: Any) -> float:
        return float(sums[0] / sums[1])


def mean_of_batch(self: Any, outputs: Any, targets: Any, loss: Any) -> Any:
    return torch.stack([outputs.double().abs().mean(), torch.ones((), dtype=torch.float64)])


def remembering(self: Any, outputs: Any, targets: Any, loss: Any) -> Any:
    self.seen = float(outputs.sum())
    return Metric.sums(self, outputs, targets, loss)


def doubling(self: Any, outputs: Any, targets: Any, loss: Any) -> Any:
    return Metric.sums(self, outputs.mul_(2), targets, loss)


METRICS: dict[str, Case] = {
    "a mean of batches": (variant(Metric, sums=mean_of_batch), "sums add up over batches"),
    "remembers": (
        variant(Metric, sums=remembering, value=lambda self, sums: self.seen),
        "value is a number made of the sums alone",
    ),
    "in place": (variant(Metric, sums=doubling), "what it is lent stays as it is"),
}


# -- models -----------------------------------------------------------------------------------------------------


class Model(pk.Model):
    """One layer."""

    name = "good"

    def build(self, data: Any) -> Any:
        return nn.Sequential(nn.Flatten(), nn.Linear(data.features, data.outputs))


def building(build: Callable[[Any], Any]) -> Any:
    return variant(Model, build=lambda self, data: build(data))


def good(data: Any, *more: nn.Module) -> Any:
    return nn.Sequential(nn.Flatten(), nn.Linear(data.features, data.outputs), *more)


class Centred(nn.Module):
    def forward(self, x: Any) -> Any:
        return x - x.mean(0)


class Shifted(nn.Module):
    """A tensor that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.randn(1)

    def forward(self, x: Any) -> Any:
        return x + self.shift


class Noisy(nn.Module):
    def forward(self, x: Any) -> Any:
        return x + torch.rand_like(x)


class Unnamed(nn.Module):
    """A layer of another class than those that are prunable."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(features, outputs))

    def forward(self, x: Any) -> Any:
        return x.flatten(1) @ self.scale


def raising(data: Any) -> Any:
    raise KeyError("width")


def with_own_seed(data: Any) -> Any:
    np.random.seed(0)
    return good(data)


def with_own_draws(data: Any) -> Any:
    model = good(data)
    nn.init.constant_(model[1].bias, random.Random().random())
    return model


MODELS: dict[str, Case] = {
    "raises": (building(raising), "builds a network or refuses by a spec error"),
    "a function": (building(lambda data: torch.tanh), "builds a network or refuses by a spec error"),
    "in float64": (
        building(lambda data: good(data).double()),
        "networks are fresh on the cpu in float32 and finite",
    ),
    "in eval mode": (
        building(lambda data: good(data).eval()),
        "networks are fresh on the cpu in float32 and finite",
    ),
    "draws elsewhere": (building(with_own_draws), "the same seed builds the same network"),
    "one output": (
        building(lambda data: nn.Sequential(nn.Flatten(), nn.Linear(data.features, 1))),
        "outputs have the shape of the data",
    ),
    "noise": (building(lambda data: good(data, Noisy())), "outputs have the shape of the data"),
    "batch statistics": (
        building(lambda data: good(data, Centred())),
        "examples do not influence each other in eval mode",
    ),
    "nothing": (
        building(lambda data: Unnamed(data.features, data.outputs)),
        "there is something to prune",
    ),
    "hidden state": (building(lambda data: good(data, Shifted())), "a state restores the network"),
    "seeds numpy": (building(with_own_seed), "building leaves the process alone"),
}


# -- data sets --------------------------------------------------------------------------------------------------


class Dataset(pk.Dataset):
    """Thirty points in three classes."""

    name = "good"

    def load(self, seed: int) -> pk.Splits:
        draw = torch.Generator().manual_seed(seed)
        return points(draw)


def points(draw: Any = None, targets: int = 30, classes: int = 3, **more: Any) -> pk.Splits:
    x, y = torch.randn(30, 4, generator=draw), torch.arange(targets) % classes
    return pk.Splits(pk.Split(x, y), pk.Split(x[:5], y[:5]), outputs=3, **more)


def steady_points() -> pk.Splits:
    return points(torch.Generator().manual_seed(0))


def loading(load: Callable[[Any], Any]) -> Any:
    return variant(Dataset, load=lambda self, seed: load(torch.Generator().manual_seed(seed)))


def with_hole(draw: Any) -> pk.Splits:
    found = points(draw)
    found.train.x[3, 1] = float("nan")
    return found


def seeding(draw: Any) -> pk.Splits:
    torch.manual_seed(0)
    return points(draw)


DATASETS: dict[str, Case] = {
    "a target short": (
        loading(lambda draw: points(draw, 29)),
        "loads splits of examples with a target each",
    ),
    "a tuple": (
        loading(lambda draw: (torch.ones(3), torch.ones(3))),
        "loads splits of examples with a target each",
    ),
    "a hole": (loading(with_hole), "examples and targets are finite"),
    "a class too many": (loading(lambda draw: points(draw, classes=4)), "targets fit the task"),
    "at random": (loading(lambda draw: points()), "the same seed loads the same data"),
    "augments from elsewhere": (
        loading(lambda draw: points(draw, augment=lambda x, generator: x + torch.rand_like(x))),
        "augmentation draws from its generator alone",
    ),
    "augments in place": (
        loading(lambda draw: points(draw, augment=lambda x, generator: x.mul_(2))),
        "augmentation draws from its generator alone",
    ),
    "seeds torch": (loading(seeding), "loading leaves the process alone"),
}

BROKEN: dict[str, dict[str, Case]] = {
    "criterion": CRITERIA,
    "scheduler": SCHEDULERS,
    "selector": SELECTORS,
    "statistic": STATISTICS,
    "loss": LOSSES,
    "probe": PROBES,
    "recorder": RECORDERS,
    "model": MODELS,
    "dataset": DATASETS,
    "executor": EXECUTORS,
    "metric": METRICS,
}

GOOD: list[tuple[str, Any]] = [
    ("criterion", Criterion),
    ("criterion", Whole),
    ("scheduler", Fixed),
    ("scheduler", Adaptive),
    ("selector", Selector),
    ("statistic", Statistic),
    ("loss", Loss),
    ("probe", Probe),
    ("recorder", Recorder),
    ("model", Model),
    ("dataset", Dataset),
    ("executor", Executor),
    ("metric", Metric),
]
