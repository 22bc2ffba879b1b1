"""A spectrum as a picture: the density with its error, and where the ends are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prunekit.drawing import COLOURS, INK, places, sparsity_axis, threshold
from prunekit_plugins._landscape.moments import SPOKEN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from prunekit.results import Results

_UNIT = "eigenvalue (loss per squared weight)"
_FLOOR = 1e-6  # of all eigenvalues, if there were as many everywhere: less is where Gaussians end


def draw(results: Results, label: str, figure: Figure) -> None:
    """A panel for every network that was measured; over the steps, the ends of the spectrum against sparsity."""
    once = [moment for moment in results.moments(label) if moment != "step"]
    steps = results.summary["probes"][label].get("steps", [])
    panels = figure.subplots(1, len(once) + bool(steps), squeeze=False)[0]
    for axis, moment in zip(panels, once, strict=False):
        _density(axis, results.probe(label, moment))
        axis.set_title(f"The spectrum, {SPOKEN[moment]}")
    if steps:
        _ends(panels[-1], results, label)


def _density(axis: Axes, groups: dict[str, dict[str, np.ndarray]]) -> None:
    """Eigenvalues per unit, of all the weights' together, on a logarithmic axis; the ends as marks below."""
    ends = groups["spectrum"]
    if "density" in groups:
        found = groups["density"]
        values, heights, error = found["value"], found["density"], found["density_error"]
        # Below, Gaussians of single nodes end; what lies there is no eigenvalue.
        floor = _FLOOR / max(1e-300, float(values[-1] - values[0])) if np.isfinite(values).all() else 0.0
        shown = heights > floor
        if shown.any():
            line = np.where(shown, heights, np.nan)
            axis.plot(values, line, color=COLOURS[0], label="density")
            known = shown & np.isfinite(error)
            low = np.maximum(heights - error, floor)
            axis.fill_between(
                values,
                low,
                heights + error,
                where=known,
                color=COLOURS[1],
                alpha=0.5,
                label="± standard error",
            )
            axis.set_yscale("log")
            axis.set_ylim(bottom=floor)
    bottom = axis.get_xaxis_transform()
    for key, mark in (("eigenvalues", "v"), ("smallest", "^")):
        marks = ends[key][np.isfinite(ends[key])]
        if len(marks):
            axis.plot(
                *(marks, np.full(len(marks), 0.03)),
                mark,
                color=COLOURS[3],
                transform=bottom,
                label=_NAMES[key],
            )
    linear = threshold(ends["eigenvalues"])
    if linear is not None:
        axis.set_xscale("symlog", linthresh=linear)
    axis.set_xlabel(_UNIT)
    axis.set_ylabel("share of the eigenvalues per unit")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


def _ends(axis: Axes, results: Results, label: str) -> None:
    rows = results.summary["probes"][label]["steps"]
    sparsities = {step["step"]: step["sparsity"] for step in results.summary["steps"]}
    x = places(sparsities[row["step"]] for row in rows)
    ends = results.probe(label, "step")["spectrum"]
    for key, marks, colour in (("eigenvalues", "o-", COLOURS[0]), ("smallest", "s--", COLOURS[3])):
        for place in range(ends[key].shape[1]):
            name = _NAMES[key] if not place else None
            axis.plot(x, ends[key][:, place], marks, color=colour, markersize=4, label=name)
    linear = threshold([*ends["eigenvalues"].ravel(), *ends["smallest"].ravel()])
    if linear is not None:
        axis.set_yscale("symlog", linthresh=linear)
    sparsity_axis(axis, results.summary["steps"][-1]["sparsity"])
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.set_ylabel(_UNIT)
    axis.set_title("The ends of the spectrum after each step")
    axis.legend(fontsize="small")


_NAMES = {"eigenvalues": "largest eigenvalues", "smallest": "smallest eigenvalues"}
