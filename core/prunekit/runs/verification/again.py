"""Losses and errors once more, in float64, and how far rounding in the run's own type can have moved them.

Written apart from :mod:`prunekit.network.measure`, which found them the first time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from prunekit.data import Split
from prunekit.losses.base import Loss
from prunekit.network.call import Inputs, call, rows
from prunekit.network.lent import each
from prunekit.network.restore import evaluating
from prunekit.runs.verification.claims import Number

T = TypeVar("T")

_SLICE = 500
MORE = 8
"""How many times as far as it does here may rounding move an output elsewhere: other kernels add in another order."""
_UNIT = 2.0**-19
"""What is no difference of a loss, relative to it or to 1 where it is smaller: 16 units in float32's last place."""
_LEAST = 2.0**-40
"""The same for a run in float64: kernels there differ too."""


@dataclass(frozen=True)
class Networks:
    """A network twice, with the same weights.

    Attributes:
        exact: In float64.
        own: In the run's type; ``None`` where that is float64.
    """

    exact: nn.Module
    own: nn.Module | None


@dataclass(frozen=True)
class Measured:
    """Of a set of examples.

    Attributes:
        loss: As the task has it.
        error: Fraction of wrong predictions; ``None`` for regression.
    """

    loss: Number
    error: Number | None


def measured(networks: Networks, split: Split, loss: Loss) -> Measured:
    """Measure once more.

    Args:
        networks: With the weights in question.
        split: In the run's type, on the networks' device.
        loss: Its terms are summed in float64.

    Returns:
        In float64, each with what rounding may have made of it.
    """
    total = moved = normaliser = 0.0
    wrong, least, most, predictions = 0.0, 0.0, 0.0, 0
    with evaluating(networks.exact):
        for x, y in _slices(split):
            targets = to_double(y)
            outputs = call(networks.exact, to_double(x)).detach()
            turned = [outputs]
            summed = float(loss.total(outputs, targets))
            total += summed
            normaliser += loss.normaliser(outputs, targets)
            if networks.own is not None:
                with evaluating(networks.own):
                    rounded = call(networks.own, x).detach()
                by = rounded.double() - outputs
                turned += [outputs + by, outputs + MORE * by, outputs - MORE * by]
                sums = [float(loss.total(other, targets)) for other in turned[2:]]
                moved += max(abs(other - summed) for other in sums)
                moved += MORE * abs(float(loss.total(rounded, y)) - float(loss.total(turned[1], targets)))
            counts = [loss.errors(other, targets) for other in turned]
            if counts[0] is not None:
                missed = [float(found[0]) for found in counts if found is not None]
                wrong, least, most = wrong + missed[0], least + min(missed), most + max(missed)
                predictions += counts[0][1]
    value = total / normaliser
    unit = _LEAST if networks.own is None else _UNIT
    number = Number.about(value, moved / normaliser + unit * max(1.0, abs(value)))
    if not predictions:
        return Measured(number, None)
    error = Number(wrong / predictions, least / predictions - _LEAST, most / predictions + _LEAST)
    return Measured(number, error)


def _slices(split: Split) -> Iterator[tuple[Inputs, Tensor]]:
    for start in range(0, len(split), _SLICE):
        yield rows(split.x, start, start + _SLICE), split.y[start : start + _SLICE]


def to_double(data: T) -> T:
    """Data with their numbers in float64; indices stay."""
    return each(lambda t: t.double() if t.is_floating_point() else t, data)
