"""The loss on a plane through weight space."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from prunekit import Options, Probe, ProbeRecord, Series
from prunekit_plugins._landscape.examples import measured_on

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Generator

    from prunekit import Moment, Split
    from prunekit.results import Results
    from prunekit_plugins._landscape.directions import Plane as Place


class PlaneOptions(Options):
    """Options.

    Attributes:
        directions: ``random``, normal numbers as large as the weights; ``path``, through the dense, the pruned and the
            fine-tuned network; ``eigenvectors``, the two of the largest eigenvalues; ``step``, a step's own change and the
            top eigenvector.
        points: Number of points along each axis.
        reach: How far the axes go beyond the networks in the plane: as a fraction of their distance (default 0.5), or,
            around a single one, in units of the directions (default 1).
        normalise: Scale of random directions: each ``filter`` (the weights of one output) as large as the network's, each
            ``layer``, or ``none``. Biases and norms do not move.
        operator: Matrix whose eigenvectors are taken: ``hessian`` or ``ggn``.
        examples: Number of examples of each split, from the first; null = all. At a step, its own examples count.
    """

    directions: Literal["random", "path", "eigenvectors", "step"] = "random"
    points: int = Field(default=21, ge=2, le=10_000)
    reach: float | None = Field(default=None, gt=0)
    normalise: Literal["filter", "layer", "none"] = "filter"
    operator: Literal["hessian", "ggn"] = "hessian"
    examples: int | None = Field(default=1000, ge=1)


class Plane(Probe):
    """L(centre + x·a + y·b) on a grid, with the networks that lie in the plane.

    Pruned weights stay zero, except along a path or a step. Where the loss is not finite it is NaN. References: Li et al.
    (2018), sections 3 and 4, for random directions; Garipov et al. (2018), for the plane through three networks.
    """

    name = "plane"
    headline = ("train_lowest", "train_highest")
    Options = PlaneOptions
    options: PlaneOptions

    def measure(self, moment: Moment, generator: Generator) -> ProbeRecord:
        """Measure train and, where there is such a split, validation loss at every point."""
        import numpy as np

        from prunekit_plugins._landscape.directions import extent

        options = self.options
        data = measured_on(moment, options.examples)
        place = self._place(moment, data, generator)
        reach = options.reach or (1.0 if len(place.marks) == 1 else 0.5)
        xs, ys = (
            np.linspace(low, high, options.points) for low, high in extent(list(place.marks.values()), reach)
        )
        splits = {"train": data}
        valid = None if data is None else moment.split("valid", options.examples)
        if valid is not None:
            splits["valid"] = valid
        moment.expects(len(splits) * len(xs) * len(ys) + len(place.marks))
        losses = {name: np.full((len(ys), len(xs)), np.nan) for name in splits}
        with moment.steady():
            for i, y in enumerate(ys):
                row = place.row(float(y))
                for j, point in enumerate(place.along(row, map(float, xs))):
                    for name, split in splits.items():
                        losses[name][i, j] = _finite(moment.loss(point, split))
        networks = list(place.marks)
        groups = {
            "plane": {
                "x": Series(xs, ("x",), "lengths of the first direction"),
                "y": Series(ys, ("y",), "lengths of the second direction"),
                **{f"{name}_loss": Series(values, ("y", "x"), "loss") for name, values in losses.items()},
            },
            "networks": {
                "x": Series(
                    [place.marks[name][0] for name in networks],
                    ("network",),
                    "lengths of the first direction",
                ),
                "y": Series(
                    [place.marks[name][1] for name in networks],
                    ("network",),
                    "lengths of the second direction",
                ),
                "train_loss": Series(
                    [_finite(moment.loss(place.at(*place.marks[name]), data)) for name in networks],
                    ("network",),
                    "loss",
                ),
            },
        }
        summary: dict[str, Any] = {
            "directions": options.directions,
            "networks": networks,
            "lengths": list(place.lengths),
            **({"eigenvalues": list(place.curvature)} if place.curvature else {}),
            **{f"{name}_{what}": value for name, v in losses.items() for what, value in _ends(v).items()},
        }
        attributes = {"directions": options.directions, "networks": "; ".join(networks)}
        return ProbeRecord(groups, summary, attributes=attributes)

    @classmethod
    def draw(cls, results: Results, label: str, figure: Figure) -> None:
        """Contours of the loss, with the networks."""
        from prunekit_plugins._landscape.plane_figure import draw

        draw(results, label, figure)

    def _place(self, moment: Moment, data: Split | None, generator: Generator) -> Place:
        from prunekit_plugins._landscape import directions
        from prunekit_plugins._landscape.steps import at_step

        options = self.options
        if options.directions == "random":
            return directions.random(moment, options.normalise, generator)
        if options.directions == "path":
            return directions.path(moment)
        if options.directions == "step":
            return directions.step(at_step(moment, self.name), options.operator, generator)
        return directions.eigenvectors(moment, options.operator, data, generator)


def _finite(value: float) -> float:
    return value if isfinite(value) else float("nan")


def _ends(values: Any) -> dict[str, float | None]:
    import numpy as np

    known = values[np.isfinite(values)]
    return {
        "lowest": float(known.min()) if known.size else None,
        "highest": float(known.max()) if known.size else None,
    }
