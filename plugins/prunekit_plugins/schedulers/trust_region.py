"""Steps as long as the criterion's prediction comes true."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from prunekit import Attempt, Options, RunError, Scheduler, SpecError, Stop, Target
from prunekit_plugins.schedulers._targets import TargetOptions

if TYPE_CHECKING:
    from typing import Self

    from prunekit import Criterion

_AIM = 0.5  # of the tolerance: a step that used it all would be followed by one that is taken back
_EDGE = 0.85  # of it, up to which a step on fresh examples may still be longer
_ORDER = 2.5  # of the error in a step's length, as measured on the MNIST MLP; second order promises 3
_GROWTH, _SHRINKAGE = 1.5, 0.2  # of a step's length, at most
_SURE = 0.8  # of the length that was too much: a step is shortened by this at least
_UNTRUE = (
    0.25  # of the predicted change does not come true on the step's own examples where the damping stays
)


class Tolerance(Options):
    """How far a step's measured change of the loss may be from the predicted one.

    Attributes:
        relative: As a fraction of the predicted change; added to ``absolute``.
        absolute: In the loss's units, per step.
    """

    relative: float = Field(default=1.0, ge=0)
    absolute: float = Field(default=0.02, ge=0)

    @model_validator(mode="after")
    def _allows_something(self) -> Self:
        if not self.relative and not self.absolute:
            raise ValueError("one of relative and absolute must be above 0")
        return self


class Bounds(Options):
    """Where it starts, and its limits.

    Attributes:
        start: Value for the first attempt.
        least: Lower limit.
        most: Upper limit.
    """

    start: float = Field(gt=0)
    least: float = Field(gt=0)
    most: float = Field(gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.least <= self.start <= self.most:
            raise ValueError(f"least ≤ start ≤ most; found {self.least}, {self.start}, {self.most}")
        return self


class StepBounds(Bounds):
    """Lengths of a step: the fraction of the remaining weights that goes.

    Attributes:
        start: Value for the first attempt.
        least: A step that must be shorter than this to come true ends the run.
        most: Upper limit.
    """

    start: float = Field(default=0.5, gt=0, lt=1)
    least: float = Field(default=0.002, gt=0, lt=1)
    most: float = Field(default=0.9, gt=0, lt=1)


class DampingBounds(Bounds):
    """Multiples of the identity in place of the criterion's damping; for a criterion without one, λ.

    Attributes:
        start: Value for the first attempt.
        least: Lower limit.
        most: Upper limit.
    """

    start: float = Field(default=0.1, gt=0)
    least: float = Field(default=1e-3, gt=0)
    most: float = Field(default=1e3, gt=0)


class TrustRegionOptions(TargetOptions):
    """Options.

    Attributes:
        passes: Maximum number of estimates of the statistics: one for each step, however many attempts it takes. A run that
            needs more fails, and keeps what is pruned.
        tolerance: ``{relative, absolute}``: |measured − predicted| ≤ absolute + relative·|predicted| lets a step stay.
        adapt: ``sparsity`` changes how far a step goes; ``damping`` how strongly it is damped, at steps that all take
            ``step.start`` of the remaining weights; ``both``.
        measure: ``sample``: the change on the step's own examples; ``fresh``: on as many others. Left out: ``fresh`` where
            the criterion adjusts weights that stay and there are other examples.
        radius: Measure the Taylor radius of every proposal, and make no step longer than the loss's second-order
            polynomial held along the one before; useful where the criterion's model is the full second-order one.
        step: Bounds of a step's length, the fraction of the remaining weights that goes: ``{start, least, most}``.
        damping: Bounds of the damping, if it adapts: ``{start, least, most}``.
    """

    passes: int = Field(default=200, ge=1)
    tolerance: Tolerance = Tolerance()
    adapt: Literal["sparsity", "damping", "both"] = "sparsity"
    measure: Literal["sample", "fresh"] | None = None
    radius: bool = False
    step: StepBounds = StepBounds()
    damping: DampingBounds = DampingBounds()


@dataclass(frozen=True)
class _Region:
    """What the next attempt may be.

    Attributes:
        here: Sparsity after the last step that stayed.
        length: −ln of the fraction of the weights left that stays.
        damping: As in :class:`prunekit.Target`.
        end: Why there is no next attempt, other than that all is done.
    """

    here: float
    length: float
    damping: float
    end: str | None = None


class TrustRegion(Scheduler):
    """Goes as far at each step as the criterion's prediction comes true, and takes back a step whose prediction does not.

    A step stays while the measured change of the loss is within the tolerance of the predicted one. The next is as long
    as one is expected to be whose error is half the tolerance, the error growing as the length to the power 2.5; lengths
    are −ln of the fraction of the weights left that stays, so that a tenth of them is as long a step early as late. On
    fresh examples some of the error stays however short a step is: there one that stays does not shorten the next. The
    damping falls or rises until a quarter of the predicted change does not come true on the step's own examples, and
    doubles where a step is taken back that fits these and not the fresh ones. The last step ends at the sparsity asked for.
    References: Conn, Gould & Toint (2000), Trust-Region Methods, chapter 6; Marquardt (1963) for the damping.
    """

    name = "trust_region"
    Options: ClassVar[type[TrustRegionOptions]] = TrustRegionOptions
    options: TrustRegionOptions

    def needed(self, criterion: Criterion, fresh: bool) -> frozenset[str]:
        """``fresh``, where the change on fresh examples is what counts, and ``radius``, if that is wanted.

        Raises:
            SpecError: If the criterion predicts no change, or fresh examples are asked for and there are none.
        """
        if not criterion.predicts:
            raise SpecError(
                f"scheduler {self.name!r} compares predicted with measured changes of the loss, but criterion "
                f"{criterion.name!r} predicts none; take one that models the loss (lm, qm, obd, obs, combinatorial, …), or "
                "another scheduler"
            )
        if self.options.measure == "fresh" and not fresh:
            raise SpecError(
                f"scheduler {self.name!r}: measure: fresh needs examples besides those of the step, and there are none; "
                "let prune.examples be less than all, or give pk.prune a function that draws its batches; or measure: sample"
            )
        chosen = self.options.measure or ("fresh" if criterion.updates and fresh else "sample")
        return frozenset(
            ({"fresh"} if chosen == "fresh" else set()) | ({"radius"} if self.options.radius else set())
        )

    def planned(self) -> list[float]:
        """Where it ends."""
        return [self.options.sparsity]

    def next(self, history: Sequence[Attempt]) -> Target | None:
        """The region around the last step that stayed, cut at the sparsity asked for."""
        goal, region = self.options.sparsity, self._region(history)
        if region.end is not None or (history and region.here >= goal):
            return None
        damping = None if self.options.adapt == "sparsity" else region.damping
        left = _length(region.here, goal)
        if left <= region.length:
            return Target(goal, damping=damping)
        # The last two steps are alike: a small rest would cost as much as a whole one.
        sparsity = 1 - (1 - region.here) * math.exp(-min(region.length, left / 2))
        return Target(min(max(sparsity, _one_more(history)), goal), damping=damping)

    def accept(self, attempt: Attempt, history: Sequence[Attempt]) -> bool:
        """Whether the prediction has come true within the tolerance.

        Raises:
            RunError: If the criterion has predicted nothing.
        """
        return self._error(attempt) <= 1

    def stopped(self, history: Sequence[Attempt]) -> Stop | None:
        """The limit that it met short of the sparsity asked for."""
        end = self._region(history).end
        return None if end is None else Stop(f"{end}; {self.options.sparsity:.6g} was asked for", short=True)

    def _region(self, history: Sequence[Attempt]) -> _Region:
        options = self.options
        bounds = options.step
        least, most = (_length(0.0, fraction) for fraction in (bounds.least, bounds.most))
        region = _Region(0.0, _length(0.0, bounds.start), options.damping.start)
        steps = 0
        for attempt in history:
            # No longer than the region, where a single weight is more than that.
            length = min(region.length, _length(region.here, attempt.target.sparsity))
            tried = replace(region, length=length)
            region = self._after(attempt, tried, most)
            steps += attempt.accepted
        if region.here >= options.sparsity:
            return region
        if steps >= options.passes and history[-1].accepted:
            return replace(region, end=f"{options.passes} passes are used up")
        if history and not history[-1].accepted:
            stuck = region.length < least or options.adapt == "damping"
            if stuck and (options.adapt == "sparsity" or history[-1].target.damping == options.damping.most):
                return replace(region, end=self._stuck(history[-1]))
        return replace(region, length=max(region.length, least))

    def _after(self, attempt: Attempt, tried: _Region, most: float) -> _Region:
        """The region after an attempt."""
        options, error = self.options, self._error(attempt)
        length, damping = tried.length, tried.damping
        if options.adapt == "damping":
            length = _length(0.0, options.step.start)
        else:
            factor = _fitting(_AIM, self._own_error(attempt))
            if not attempt.accepted:
                factor = min(factor, _fitting(_AIM, error), _SURE)
            elif "fresh" in attempt.measured:  # some of the error there stays, however short the step is
                factor = min(factor, max(_fitting(_EDGE, error), 1.0))
            factor = min(factor, self._radius(attempt))
            length = min(length * min(max(factor, _SHRINKAGE), _GROWTH), most)
        if options.adapt != "sparsity":
            factor = min(max(self._untrue(attempt) / _UNTRUE, 0.5), 1.5)
            if not attempt.accepted:
                shortest = length < _length(0.0, options.step.least)
                rises = options.adapt == "damping" or shortest or self._fitted(attempt)
                factor = 2.0 if rises else 1.0
            damping = min(max(damping * factor, options.damping.least), options.damping.most)
        # What was pruned at the start may be more than the first target.
        here = max(attempt.target.sparsity, attempt.sparsity) if attempt.accepted else tried.here
        return _Region(here, length, damping)

    def _error(self, attempt: Attempt) -> float:
        """|measured − predicted| in units of the tolerance; infinite where something is not finite."""
        fresh = attempt.measured.get("fresh")
        if fresh is None or not math.isfinite(attempt.delta_loss):
            return self._own_error(attempt)
        return self._apart(attempt, fresh["delta_loss"])

    def _own_error(self, attempt: Attempt) -> float:
        """The same on the step's own examples, whatever is compared."""
        return self._apart(attempt, attempt.delta_loss)

    def _apart(self, attempt: Attempt, measured: float) -> float:
        predicted = attempt.predicted_delta_loss
        if predicted is None:
            raise RunError(
                f"scheduler {self.name!r} compares predicted with measured changes of the loss, but the criterion has "
                f"predicted none at step {attempt.step}; take another scheduler"
            )
        allowed = self.options.tolerance.absolute + self.options.tolerance.relative * abs(predicted)
        apart = abs(measured - predicted)
        if not math.isfinite(apart):
            return math.inf
        if not allowed:
            return math.inf if apart else 0.0
        return apart / allowed

    def _radius(self, attempt: Attempt) -> float:
        """The part of the step up to which the second-order polynomial is off by half the tolerance at most."""
        from prunekit_plugins._landscape.radius import radius

        found = attempt.measured.get("radius", {})
        derivatives = [found.get(f"derivative_{order}") for order in range(1, 5)]
        known = [value for value in derivatives if value is not None]
        if len(known) < len(derivatives) or not all(map(math.isfinite, known)):
            return math.inf  # it cannot be had for this network, and the radius says why
        relative, absolute = (
            _AIM * part for part in (self.options.tolerance.relative, self.options.tolerance.absolute)
        )
        return radius([0.0, *known], 2, relative, absolute, _GROWTH)

    def _untrue(self, attempt: Attempt) -> float:
        """What part of the predicted change has not come true on the step's own examples; of a small one, less."""
        predicted = attempt.predicted_delta_loss or 0.0
        apart = abs(attempt.delta_loss - predicted)
        scale = abs(predicted) + self.options.tolerance.absolute
        return apart / scale if math.isfinite(apart) and scale else math.inf

    def _fitted(self, attempt: Attempt) -> bool:
        """Whether a step is off because it fits its own examples, and not because it is too long for the model."""
        return self._error(attempt) > 2 * self._own_error(attempt)

    def _stuck(self, attempt: Attempt) -> str:
        """What the smallest step still does, in words."""
        return (
            f"a step to {attempt.sparsity:.6g} is predicted to change the loss by "
            f"{attempt.predicted_delta_loss:.4g}, and is off by {self._error(attempt):.3g} times the tolerance, at the "
            "bound of what may be tried"
        )


def _length(start: float, end: float) -> float:
    """Of a step between two sparsities: −ln of the fraction of the weights left that stays."""
    return math.log((1 - start) / (1 - end))


def _fitting(aim: float, error: float) -> float:
    """By how much a step may be longer for its error to be ``aim``, both in units of the tolerance."""
    return (aim / error) ** (1 / _ORDER) if error else math.inf


def _one_more(history: Sequence[Attempt]) -> float:
    """The sparsity with one weight more than after the last step that stayed: less would be no step."""
    if not history or not history[-1].pruned:
        return 0.0
    total = round(history[-1].pruned / history[-1].sparsity)
    return (max((attempt.pruned for attempt in history if attempt.accepted), default=0) + 1) / total
