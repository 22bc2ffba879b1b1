"""The Taylor radius as a picture: how far the models hold, and what they leave at the end of the step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit.drawing import COLOURS, INK, numbers, places, sparsity_axis, threshold, unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from prunekit.results import Results

_MARKS = ("o-", "s--")


def draw(results: Results, label: str, figure: Figure) -> None:
    """Two panels, from a run with the probe under this label."""
    rows = results.summary["probes"][label]["steps"]
    steps = {step["step"]: step for step in results.summary["steps"]}
    x = places(steps[row["step"]]["sparsity"] for row in rows)
    left, right = figure.subplots(1, 2)
    for order, marks, colour in zip((1, 2), _MARKS, (COLOURS[0], COLOURS[3]), strict=True):
        left.plot(
            x, numbers(rows, f"radius_{order}"), marks, color=colour, label=f"order {order}", markersize=4
        )
        remainder = numbers(rows, f"remainder_{order}")
        right.plot(x, remainder, marks, color=colour, label=f"left by order {order}", markersize=4)
    measured = [steps[row["step"]]["delta_loss"] for row in rows]
    right.plot(x, measured, ":", color=INK, label="measured change")
    left.axhline(1, color=INK, linewidth=0.8, linestyle=":", label="the step itself")
    left.set_yscale("log")
    linear = threshold([*numbers(rows, "remainder_1"), *numbers(rows, "remainder_2"), *measured])
    if linear is not None:
        right.set_yscale("symlog", linthresh=linear)
    for axis in (left, right):
        sparsity_axis(axis, results.summary["steps"][-1]["sparsity"])
        axis.legend(fontsize="small")
    left.set_ylabel("radius (lengths of the step)")
    left.set_title("How far a Taylor polynomial holds")
    right.set_ylabel(f"change of the loss in a step ({unit(results.summary)})")
    right.set_title("What it leaves at the end of the step")
