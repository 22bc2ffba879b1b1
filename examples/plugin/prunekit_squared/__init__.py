"""The criterion ``squared`` and the probe ``zeros``: an example of a prunekit plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

import prunekit as pk

if TYPE_CHECKING:  # torch takes seconds to import; listing plugins should not wait for it
    from torch import Generator, Tensor


class SquaredOptions(pk.Options):
    """Options.

    Attributes:
        power: Exponent of |g·θ|; every value gives the same ranking where λ = 0.
    """

    power: float = Field(default=2.0, gt=0)


class Squared(pk.Criterion):
    """|g·θ|^power. Models no loss, so it predicts no change."""

    name = "squared"
    requires = frozenset({"gradient"})
    Options = SquaredOptions

    def saliency(self, weights: pk.Tensors, statistics: pk.Statistics) -> dict[str, Tensor]:
        """|gθ|^power per weight."""
        gradient = statistics["gradient"]
        return {k: (gradient[k] * w).abs() ** self.options.power for k, w in weights.items()}


class Zeros(pk.Probe):
    """The fraction of each prunable tensor that is zero, in every network of the run."""

    name = "zeros"

    def measure(self, moment: pk.Moment, generator: Generator) -> pk.ProbeRecord:
        """Count."""
        found: dict[str, list[float]] = {}
        for phase in moment.phases:
            weights = moment.weights(phase)
            found[phase] = [float((weights[k] == 0).double().mean()) for k in moment.prunable]
        groups = {p: {"zeros": pk.Series(v, ("layer",), "fraction")} for p, v in found.items()}
        return pk.ProbeRecord(groups, {p: max(v) for p, v in found.items()})


@pk.hookimpl
def prunekit_register_criteria() -> list[type[pk.Criterion]]:
    """The criterion."""
    return [Squared]


@pk.hookimpl
def prunekit_register_probes() -> list[type[pk.Probe]]:
    """The probe."""
    return [Zeros]
