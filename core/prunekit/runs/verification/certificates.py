"""Claims of certificates: that no choice of as many weights does better under the step's model than they say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.data import Split
from prunekit.losses.base import Loss
from prunekit.network.call import call, rows
from prunekit.network.restore import evaluating
from prunekit.runs.verification.again import MORE, to_double
from prunekit.runs.verification.bound import lower_bound
from prunekit.runs.verification.claims import (
    Claim,
    Number,
    all_judged,
    close,
    differs,
    holds,
    steps,
    unchecked,
)
from prunekit.runs.verification.evidence import Evidence, UnavailableError, explained

_SLICE = 100
"""Examples that go through the network together."""
_EXACT, _SINGLE = 2.0**-36, 2.0**-19
"""Of the sizes of a bound's terms, what is no difference; for runs in float64 and in other types."""
_NOT_STORED = "it keeps no ν; `{name: certificate, store: true}` does"


def of_certificates(evidence: Evidence, say: Callable[[str], None]) -> Iterator[Claim]:
    """A few claims for each certificate; what it has stored of the weights is known from then on."""
    results = evidence.results
    for label in results.summary["probes"]:
        if results.probe_kind(label) == "certificate" and "step" in results.moments(label):
            yield from _Certificate(evidence, label, say).claims()


class _Certificate:
    def __init__(self, evidence: Evidence, label: str, say: Callable[[str], None]) -> None:
        self._evidence, self._label, self._say = evidence, label, say
        results = evidence.results
        found = results.probe(label, "step")
        self._numbers = {name: values.tolist() for name, values in found["certificate"].items()}
        self._stored = found.get("stored")
        self._shown = results.summary["probes"][label]["steps"]
        self._steps: list[int] = [shown["step"] for shown in self._shown]
        self._model = results.attributes(label, "step")
        self._rows = {row["step"]: row for row in results.summary["steps"]}

    def claims(self) -> Iterator[Claim]:
        """The cheap ones first."""
        numbers = self._numbers
        yield self._compared("budget is what the step keeps", self._budget)
        yield self._compared("damping is the step's", self._damping)
        yield self._compared(
            "gap is value less bound",
            lambda i: close(numbers["gap"][i], numbers["value"][i] - numbers["bound"][i], _at(numbers, i)),
        )
        yield self._compared("what is shown is what was stored", self._is_shown)
        if self._stored is None:
            yield unchecked(f"{self._label}: bound", _NOT_STORED)
            return
        yield self._of_weights()
        bounds, values, why = self._found()
        for name, found in (("bound", bounds), ("value", values)):
            stated = dict(zip(self._steps, self._numbers[name], strict=True))
            yield from all_judged(
                f"{self._label}: {name}",
                {step: value if math.isfinite(value) else None for step, value in stated.items()},
                found,
                why or self._evidence.trail.why,
            )

    def _compared(self, name: str, agrees: Callable[[int], bool]) -> Claim:
        wrong = [step for i, step in enumerate(self._steps) if not agrees(i)]
        name = f"{self._label}: {name}"
        return differs(name, f"at {steps(wrong)}") if wrong else holds(name, steps(self._steps))

    def _budget(self, i: int) -> bool:
        return bool(self._numbers["budget"][i] == self._rows[self._steps[i]]["remaining"])

    def _damping(self, i: int) -> bool:
        """The criterion's own and λ, unless the scheduler has set another."""
        summary = self._evidence.results.summary
        criterion = summary["spec"]["prune"]["criterion"]
        tried = [a for a in summary["attempts"] if a["accepted"] and a["step"] == self._steps[i]]
        lam, set_ = criterion["lambda"], None
        if tried:
            lam, set_ = tried[0]["lambda"], tried[0]["damping"]
        expected = criterion.get("damping", 0.0) + lam if set_ is None else set_
        return close(self._numbers["damping"][i], expected)

    def _is_shown(self, i: int) -> bool:
        return all(
            self._shown[i].get(name) == (values[i] if math.isfinite(values[i]) else None)
            for name, values in self._numbers.items()
            if name in self._shown[i]
        )

    def _of_weights(self) -> Claim:
        """θ is zero where masks prune, and is what the steps before have left, where that is known otherwise."""
        name = f"{self._label}: weights before the steps"
        wrong = []
        for i, step in enumerate(self._steps):
            before, known = self._weights(i), self._evidence.trail.after(step - 1)
            masks = self._evidence.results.masks(step - 1)
            right = not any(before[n][~mask].any() for n, mask in masks.items())
            if not right or (known and any(not np.array_equal(before[n], known[n]) for n in before)):
                wrong.append(step)
        if wrong:
            return differs(name, f"others at {steps(wrong)}")
        for i, step in enumerate(self._steps):
            self._evidence.trail.learn(step, self._weights(i))
        return holds(name, steps(self._steps))

    def _weights(self, i: int) -> dict[str, np.ndarray]:
        """θ by tensor."""
        assert self._stored is not None
        flat, tensors, start = self._stored["weights"][i], {}, 0
        for name, mask in self._evidence.results.masks(0).items():
            tensors[name] = flat[start : start + mask.size].reshape(mask.shape)
            start += mask.size
        return tensors

    def _found(self) -> tuple[dict[int, Number], dict[int, Number], str]:
        """Bounds and values of the steps, and why there are no more."""
        bounds: dict[int, Number] = {}
        values: dict[int, Number] = {}
        try:
            columns = self._columns()
            for i, step in enumerate(self._steps):
                self._say(f"{self._label}, step {step}")
                problem = _Problem(self._evidence, step, self._weights(i), columns)
                assert self._stored is not None
                nu = torch.from_numpy(self._stored["nu"][i]).to(self._evidence.device)
                if not bool(nu.isfinite().all()) or len(nu) != len(problem.sample):
                    raise UnavailableError(f"ν of step {step} is not a number for every example")
                damping, gradient = self._numbers["damping"][i], float(self._model.get("gradient", 1))
                with explained():
                    bounds[step] = problem.bound(nu, int(self._numbers["budget"][i]), damping, gradient)
                    after = self._evidence.trail.after(step)
                    if after is not None:
                        values[step] = problem.value(after, damping, gradient)
        except UnavailableError as why:
            return bounds, values, str(why)
        return bounds, values, ""

    def _columns(self) -> Callable[[Tensor, Tensor], Iterable[Tensor]]:
        """S_c of the curvature that the certificate is about."""
        kind = self._model.get("curvature", "ggn")
        if kind == "ggn":
            self._check_factor()
            return self._evidence.loss.ggn_factor
        if kind == "empirical_fisher":
            return self._evidence.loss.term_gradients
        raise UnavailableError(f"the curvature is {kind}, whose draws are not in the file")

    def _check_factor(self) -> None:
        """The columns that the loss gives are a factor of its Hessian."""
        evidence = self._evidence
        few, loss = evidence.sample(self._steps[0]).first(_SLICE), evidence.loss
        with explained():
            networks = evidence.holding(evidence.results.weights("dense"))
            with evaluating(networks.exact):
                outputs = call(networks.exact, to_double(few.x)).detach()
            off = of_factor(loss, outputs, to_double(few.y))
        if off > _SINGLE:
            raise UnavailableError(
                f"loss {loss.name!r} gives columns that are no factor of its Hessian, by {off:.2g}"
            )


class _Problem:
    """A step's model of the loss, at the weights before it."""

    def __init__(
        self,
        evidence: Evidence,
        step: int,
        before: Mapping[str, np.ndarray],
        columns: Callable[[Tensor, Tensor], Iterable[Tensor]],
    ) -> None:
        self._evidence, self._columns = evidence, columns
        self.sample = evidence.sample(step)
        self._before = before
        masks = evidence.results.masks(step - 1)
        self._kept = {name: torch.from_numpy(mask).to(evidence.device) for name, mask in masks.items()}

    def bound(self, nu: Tensor, budget: int, damping: float, gradient: float) -> Number:
        """In float64, and what A and g in the run's type may have made of it; a stated one may lie a little lower."""
        exact, *own = [self._terms(*network, nu, budget, damping, gradient) for network in self._networks()]
        return _number(exact, own)

    def value(self, after: Mapping[str, np.ndarray], damping: float, gradient: float) -> Number:
        """P of the weights after the step."""
        exact, *own = [self._parts(*network, after, damping, gradient) for network in self._networks()]
        return _number(exact, own)

    def _networks(self) -> list[tuple[nn.Module, Split]]:
        networks = self._evidence.holding(self._evidence.results.weights("dense"))
        exact = Split(to_double(self.sample.x), to_double(self.sample.y))
        return [(networks.exact, exact), *([] if networks.own is None else [(networks.own, self.sample)])]

    def _terms(
        self, model: nn.Module, sample: Split, nu: Tensor, budget: int, damping: float, gradient: float
    ) -> list[float]:
        loss, theta = self._evidence.loss, _tensors(self._before, model, sample)
        batches = [(partial(_predicted, model, x), y) for x, y in _slices(sample)]
        with evaluating(model):
            normaliser = sum(loss.normaliser(forward(theta), y) for forward, y in batches)
            return lower_bound(
                batches,
                loss.total,
                self._columns,
                normaliser,
                theta,
                self._kept,
                nu,
                budget,
                damping,
                gradient,
            )

    def _parts(
        self,
        model: nn.Module,
        sample: Split,
        after: Mapping[str, np.ndarray],
        damping: float,
        gradient: float,
    ) -> list[float]:
        """gᵀΔ, ½‖AΔ‖² and α/2·‖Δ‖²."""
        loss, theta = self._evidence.loss, _tensors(self._before, model, sample)
        ends = _tensors({name: after[name] for name in theta}, model, sample)
        change = {name: ends[name] - theta[name] for name in theta}
        first = second = normaliser = 0.0
        with evaluating(model):
            for x, y in _slices(sample):
                outputs, moved = torch.func.jvp(partial(_predicted, model, x), (theta,), (change,))[:2]
                normaliser += loss.normaliser(outputs, y)
                slope = torch.func.grad(loss.total)(outputs, y)
                first += float((slope * moved).sum(dtype=torch.float64))
                for column in self._columns(outputs.detach(), y):
                    along = (column * moved).flatten(1).sum(1, dtype=torch.float64)
                    second += float(along.square().sum())
        size = sum(float(d.double().square().sum()) for d in change.values())
        return [gradient * first / normaliser, second / (2 * normaliser), damping / 2 * size]


def of_factor(loss: Loss, outputs: Tensor, targets: Tensor) -> float:
    """How far Σ S_c S_cᵀ is from the Hessian of the loss in the outputs, along one vector; relative."""
    vector = torch.arange(1, outputs.numel() + 1, device=outputs.device).sin().view_as(outputs).to(outputs)

    def steepest(outputs: Tensor) -> Tensor:
        slope: Tensor = torch.func.grad(loss.total)(outputs, targets)
        return slope

    back = torch.func.vjp(steepest, outputs)[1]
    (hessian,) = back(vector)
    found = torch.zeros_like(outputs)
    for column in loss.ggn_factor(outputs, targets):
        along = (column * vector).flatten(1).sum(1)
        found += column * along.view(-1, *[1] * (outputs.ndim - 1))
    return float((found - hessian).norm() / (1 + hessian.norm()))


def _number(exact: list[float], own: list[list[float]]) -> Number:
    value, size = math.fsum(exact), math.fsum(map(abs, exact))
    moved = max((MORE * abs(math.fsum(terms) - value) for terms in own), default=0.0)
    return Number.about(value, moved + (_SINGLE if own else _EXACT) * size)


def _tensors(weights: Mapping[str, np.ndarray], model: nn.Module, sample: Split) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    return {
        name: torch.from_numpy(np.array(value)).to(sample.y.device, named[name].dtype)
        for name, value in weights.items()
    }


def _predicted(model: nn.Module, x: Any, weights: Mapping[str, Tensor]) -> Tensor:
    return call(model, x, weights)


def _slices(sample: Split) -> Iterator[tuple[Any, Tensor]]:
    for start in range(0, len(sample), _SLICE):
        yield rows(sample.x, start, start + _SLICE), sample.y[start : start + _SLICE]


def _at(numbers: Mapping[str, list[float]], i: int) -> list[float]:
    return [numbers["value"][i], numbers["bound"][i]]
