"""The error budget as a picture: parts of each step, and predicted against measured changes."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

from prunekit.drawing import (
    COLOURS,
    HATCHES,
    INK,
    numbers,
    places,
    sparsity_axis,
    threshold,
    unit,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from prunekit.results import Results


def draw(results: Results, label: str, parts: Sequence[str], figure: Figure) -> None:
    """Two panels.

    Args:
        results: Of a run with the probe.
        label: The probe's.
        parts: Names of the parts.
        figure: Empty.
    """
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _stacked(left, results, label, parts)
    _predicted(right, results, label)


def _stacked(axis: Axes, results: Results, label: str, parts: Sequence[str]) -> None:
    """Each step as wide as the weights that it takes; what raises the loss above zero, what lowers it below."""
    rows = results.summary["probes"][label]["steps"]
    steps = {step["step"]: step for step in results.summary["steps"]}
    ends = places(steps[row["step"]]["sparsity"] for row in rows)
    starts = places(steps[row["step"] - 1]["sparsity"] if row["step"] > 1 else 0.0 for row in rows)
    widths = [max(end - start, 1e-9) for start, end in zip(starts, ends, strict=True)]
    heights = {part: numbers([row["parts"] for row in rows], part) for part in parts}
    above, below = [0.0] * len(rows), [0.0] * len(rows)
    for part, colour, hatch in zip(parts, COLOURS, HATCHES, strict=False):
        values = [v if isfinite(v) else 0.0 for v in heights[part]]
        bottoms = [up if v >= 0 else down for v, up, down in zip(values, above, below, strict=True)]
        axis.bar(
            starts, values, widths, bottoms, align="edge", color=colour, hatch=hatch, edgecolor="white", linewidth=0.3,
            label=part.replace("off_", "off-").replace("_", " ").replace("ggn", "GGN").replace("hessian", "Hessian"),
        )  # fmt: skip
        above = [up + max(v, 0.0) for up, v in zip(above, values, strict=True)]
        below = [down + min(v, 0.0) for down, v in zip(below, values, strict=True)]
    measured = numbers(rows, "measured")
    middles = [start + width / 2 for start, width in zip(starts, widths, strict=True)]
    axis.plot(middles, measured, "o-", color=INK, markersize=3.5, markeredgecolor="white", label="measured")
    linear = threshold([*above, *below, *measured])
    if linear is not None:
        axis.set_yscale("symlog", linthresh=linear)
    axis.axhline(0, color=INK, linewidth=0.8)
    sparsity_axis(axis, results.summary["steps"][-1]["sparsity"])
    axis.set_ylabel(f"change of the loss in a step ({unit(results.summary)})")
    axis.set_title("What the change is made of")
    axis.figure.legend(
        *axis.get_legend_handles_labels(), fontsize="small", loc="outside lower left", ncols=6
    )  # bars fill the axes


def _predicted(axis: Axes, results: Results, label: str) -> None:
    """Steps as dots, those that no loss can meet crossed, attempts taken back hollow."""
    rows = results.summary["probes"][label]["steps"]
    predicted, measured = numbers(rows, "predicted_delta_loss"), numbers(rows, "measured")
    gone = [attempt for attempt in results.summary["attempts"] if not attempt["accepted"]]
    gone_predicted, gone_measured = numbers(gone, "predicted_delta_loss"), numbers(gone, "delta_loss")
    axis.plot(predicted, measured, "o", color=COLOURS[0], markersize=5, label="steps")
    if gone:
        axis.plot(
            gone_predicted, gone_measured, "o", color=COLOURS[3], markersize=6, fillstyle="none",
            label="attempts taken back",
        )  # fmt: skip
    never = [row for row in rows if row["impossible"]]
    if never:
        axis.plot(
            numbers(never, "predicted_delta_loss"), numbers(never, "measured"), "x", color=COLOURS[3], markersize=9,
            label="predicted below any loss",
        )  # fmt: skip
    values = [v for v in (*predicted, *measured, *gone_predicted, *gone_measured) if isfinite(v)]
    linear = threshold(values)
    if linear is not None:
        axis.set_xscale("symlog", linthresh=linear)
        axis.set_yscale("symlog", linthresh=linear)
    axis.axline((0, 0), slope=1, color=INK, linewidth=0.8, linestyle="--") if linear is None else axis.plot(
        [min(values), max(values)], [min(values), max(values)], "--", color=INK, linewidth=0.8
    )
    if not any(isfinite(v) for v in predicted):
        axis.text(0.5, 0.5, "the criterion predicts no change", ha="center", transform=axis.transAxes)
    axis.set_xlabel(f"predicted change ({unit(results.summary)})")
    axis.set_ylabel(f"measured change ({unit(results.summary)})")
    axis.set_title("Predicted and measured")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
