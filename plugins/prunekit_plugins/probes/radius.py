"""The Taylor radius: how far along a step a model of the loss holds."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

from pydantic import Field

from prunekit import Options, Probe, ProbeRecord, Series, UnsupportedError
from prunekit_plugins._landscape.steps import at_step

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Generator, Tensor

    from prunekit import Moment, StepMoment
    from prunekit.results import Results

ORDER = 4
"""Of the highest derivative; the terms between a model's order and this one say where it ends."""

_MODELS = (1, 2)


class Tolerance(Options):
    """How far a model may be off.

    Attributes:
        relative: As a fraction of the change that it predicts.
        absolute: In the loss's units.
    """

    relative: float = Field(default=0.25, ge=0)
    absolute: float = Field(default=0.0, ge=0)


class RadiusOptions(Options):
    """Options.

    Attributes:
        tolerance: How far a model may be off, ``absolute + relative·|predicted change|``.
        limit: The largest radius of interest; 1 is the step itself.
    """

    tolerance: Tolerance = Tolerance()
    limit: float = Field(default=4.0, gt=0)


class Radius(Probe):
    """Derivatives of t ↦ L(θ + t·Δθ) to order 4, and up to what t its first two Taylor polynomials hold.

    At a step, or at a proposal before it is applied, where a scheduler ``needs`` it. Derivatives are exact, by jets in
    one forward pass (Griewank & Walther, 2008, chapter 13); remainders are measured at t = 1; the radius of a model is
    where the terms of the higher orders, up to the fourth, leave the tolerance.
    """

    name = "radius"
    headline = ("radius_1", "radius_2")
    moments = "step"
    Options = RadiusOptions
    options: RadiusOptions

    def measure(self, moment: Moment, generator: Generator) -> ProbeRecord:
        """Measure along the step's own Δθ, on its examples; flat, so that a scheduler finds every number."""
        from prunekit_plugins._landscape.radius import radius, remainder

        moment = at_step(moment, self.name)
        tolerance, before = self.options.tolerance, moment.before()
        derivatives, reason = _derivatives(moment, before)
        moved = moment.delta_loss
        if moved is None:
            moved = moment.loss(moment.after()) - moment.loss_before
        found: dict[str, float | None] = {
            f"derivative_{k}": derivatives[k] if k < len(derivatives) else None for k in range(1, ORDER + 1)
        }
        for order in _MODELS:
            known = len(derivatives) > order
            found[f"remainder_{order}"] = remainder(derivatives, order, moved) if known else None
        for order in _MODELS:
            whole = len(derivatives) > ORDER and all(map(isfinite, derivatives))
            found[f"radius_{order}"] = (
                radius(derivatives, order, tolerance.relative, tolerance.absolute, self.options.limit)
                if whole
                else None
            )
        arrays = {
            key: Series(float("nan") if value is None else value, (), "" if "radius" in key else "loss")
            for key, value in found.items()
        }
        settings = {**tolerance.model_dump(), "limit": self.options.limit}
        return ProbeRecord(
            {"along": arrays}, {**found, **({"reason": reason} if reason else {})}, attributes=settings
        )

    @classmethod
    def draw(cls, results: Results, label: str, figure: Figure) -> None:
        """Radii and remainders over sparsity."""
        from prunekit_plugins._landscape.radius_figure import draw

        draw(results, label, figure)


def _derivatives(moment: StepMoment, before: dict[str, Tensor]) -> tuple[tuple[float, ...], str]:
    """To order 4, or to order 2, or none but the loss itself; and why not all."""
    change, reason = moment.change(), ""
    for order in (ORDER, 2):
        try:
            return moment.along(change, order, before).derivatives, reason
        except UnsupportedError as error:
            reason = reason or str(error)
    return (moment.loss_before,), reason
