"""The loss along straight lines between the networks of a run."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import Field

from prunekit import Options, Probe, ProbeRecord, Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Generator, Tensor

    from prunekit import Moment, Split
    from prunekit.results import Results


class LineOptions(Options):
    """Options.

    Attributes:
        points: Places along each line, both ends included.
        examples: Number of examples of each split, from the first; null = all.
    """

    points: int = Field(default=21, ge=2, le=1_000_000)
    examples: int | None = Field(default=1000, ge=1)


class Line(Probe):
    """L((1 − α)·a + α·b) for α in [0, 1], from dense to pruned and from pruned to fine-tuned.

    All parameters and floating-point buffers (BatchNorm's running statistics) are interpolated; integer
    buffers are those of the start. Beside it the start's own parabolas, with the Hessian and with the GGN, along the
    parameters. Reference: Goodfellow, Vinyals & Saxe (2015), section 3.
    """

    name = "line"
    headline = ("*.train_end", "*.train_barrier")
    Options = LineOptions

    @classmethod
    def draw(cls, results: Results, label: str, figure: Figure) -> None:
        """The loss on each line, with the start's parabolas."""
        from prunekit_plugins._landscape.line_figure import draw

        draw(results, label, figure)

    def measure(self, moment: Moment, generator: Generator) -> ProbeRecord:
        """Measure train and validation loss at every point of every line."""
        points = self.options.points
        places = [i / (points - 1) for i in range(points)]
        splits = {
            name: split
            for name in ("train", "valid")
            if (split := moment.split(name, self.options.examples)) is not None
        }
        groups, summary = {}, {}
        phases = moment.phases
        moment.expects((len(phases) - 1) * (1 + points * len(splits)))
        for first, second in pairwise(phases):
            start, end = moment.weights(first), moment.weights(second)
            with moment.steady():
                losses = {
                    name: [moment.loss(_between(start, end, place), split) for place in places]
                    for name, split in splits.items()
                }
            key = f"{first}_to_{second}"
            parabolas, reason = _parabolas(moment, start, end, splits["train"], places)
            groups[key] = {
                "place": Series(places, ("point",), "fraction of the way"),
                **{f"{n}_loss": Series(v, ("point",), "loss") for n, v in losses.items()},
                **{f"{n}_parabola": Series(v, ("point",), "loss") for n, v in parabolas.items()},
            }
            summary[key] = {
                f"{name}_{what}": value
                for name, v in losses.items()
                for what, value in (
                    *(("start", v[0]), ("end", v[-1]), ("highest", max(v)), ("lowest", min(v))),
                    *zip(("barrier", "barrier_place"), _barrier(v, places), strict=True),
                )
            } | ({"reason": reason} if reason else {})
        return ProbeRecord(groups, summary, attributes={f"{n}_examples": len(s) for n, s in splits.items()})


def _parabolas(
    moment: Moment, start: dict[str, Tensor], end: dict[str, Tensor], split: Split, places: list[float]
) -> tuple[dict[str, list[float]], str]:
    """L + α·gᵀΔ + ½α²·ΔᵀCΔ at the start, with C the Hessian and the GGN; and why not, if they cannot be had."""
    from prunekit import UnsupportedError

    change = {n: end[n] - a for n, a in start.items() if n in moment.parameters and not a.equal(end[n])}

    def along() -> list[float]:
        found = moment.along(change, 2, start, split)
        return [*found.derivatives, found.ggn]

    try:
        loss, slope, bend, ggn = moment.once(along)
    except UnsupportedError as error:
        unknown = [float("nan")] * len(places)
        return {"hessian": unknown, "ggn": unknown}, str(error)
    return {
        name: [loss + place * slope + place**2 * value / 2 for place in places]
        for name, value in (("hessian", bend), ("ggn", ggn))
    }, ""


def _barrier(losses: list[float], places: list[float]) -> tuple[float, float]:
    """By how much the loss rises above the straight line between its ends, at most, and where."""
    rises = [
        loss - (1 - place) * losses[0] - place * losses[-1]
        for loss, place in zip(losses, places, strict=True)
    ]
    highest = max(range(len(rises)), key=lambda i: rises[i])
    return rises[highest], places[highest]


def _between(start: dict[str, Tensor], end: dict[str, Tensor], place: float) -> dict[str, Tensor]:
    import torch

    return {
        name: torch.lerp(a, end[name], place) if a.is_floating_point() else a for name, a in start.items()
    }
