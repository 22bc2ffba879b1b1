"""The certificate as a picture: what steps cost under their model, what they cannot cost less than, and the gap."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

from prunekit.drawing import COLOURS, INK, numbers, places, sparsity_axis, threshold, unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from prunekit.results import Results


def draw(results: Results, label: str, figure: Figure) -> None:
    """Two panels, from a run with the probe under this label."""
    rows = results.summary["probes"][label]["steps"]
    steps = {step["step"]: step for step in results.summary["steps"]}
    x = places(steps[row["step"]]["sparsity"] for row in rows)
    value, bound = numbers(rows, "value"), numbers(rows, "bound")
    left, right = figure.subplots(1, 2)
    left.plot(x, value, "o-", color=COLOURS[0], label="the step", markersize=4)
    left.plot(x, bound, "s--", color=COLOURS[3], label="no choice is below", markersize=4)
    left.fill_between(x, bound, value, color=COLOURS[3], alpha=0.15)
    linear = threshold([*value, *bound])
    if linear is not None:
        left.set_yscale("symlog", linthresh=linear)
    left.axhline(0, color=INK, linewidth=0.8)
    relative = [100 * share for share in numbers(rows, "relative_gap")]
    known = any(isfinite(share) and share > 0 for share in relative)
    shown = relative if known else numbers(rows, "gap")
    right.plot(x, shown, "o-", color=COLOURS[0], label="the step costs no more above the best", markersize=4)
    if any(isfinite(share) and share > 0 for share in shown):
        right.set_yscale("log")
    for axis in (left, right):
        sparsity_axis(axis, results.summary["steps"][-1]["sparsity"])
        axis.legend(fontsize="small")
    left.set_ylabel(f"change under the model ({unit(results.summary)})")
    left.set_title("The step and the bound")
    right.set_ylabel("gap (% of the best value)" if known else f"gap ({unit(results.summary)})")
    right.set_title("How far from the best choice")
