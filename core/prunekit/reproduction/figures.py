"""The reproduction as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from prunekit.drawing import COLOURS, HATCHES, STYLES
from prunekit.reproduction.claims import Grid
from prunekit.reproduction.measured import PARTS, Measured, best, column
from prunekit.reproduction.tables import CRITERIA

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def outcomes(grid: Grid, further: Mapping[str, Sequence[Measured]], figure: Figure) -> None:
    """The error after fine-tuning over the change of the loss, a mark for each run."""
    figure.set_size_inches(7.5, 4.8)
    axis = figure.subplots()
    rows = {
        name: [run for cell, runs in grid.items() if cell[0] == name for run in runs] for name in CRITERIA
    }
    for (name, runs), (colour, mark, _) in zip({**rows, **further}.items(), STYLES, strict=False):
        x, y = (np.array(column(runs, key)) for key in ("train", "test_gap"))
        there = np.isfinite(x) & np.isfinite(y)
        if there.any():
            axis.plot(x[there], y[there], mark, color=colour, markersize=4, alpha=0.7, label=name)
    axis.set_xlabel("change of the training loss by pruning (nats)")
    axis.set_ylabel("test error after fine-tuning − dense (points)")
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="small")


def budgets(grid: Grid, steps: Sequence[int], figure: Figure) -> None:
    """The parts of the change of the loss, stacked, a bar for each criterion and π."""
    bars = []
    for name in CRITERIA:
        for count in steps:
            found = best(grid, name, "valid", count)
            if found is not None and all(all(p in run.values for p in PARTS) for run in found[1]):
                bars.append((f"{name}, {count}", [float(np.mean(column(found[1], part))) for part in PARTS]))
    figure.set_size_inches(max(6.0, 1.0 + 0.8 * len(bars)), 4.6)
    axis = figure.subplots()
    x = np.arange(len(bars))
    above, below = np.zeros(len(bars)), np.zeros(len(bars))
    for part, (i, colour) in zip(PARTS, enumerate(COLOURS), strict=True):
        values = np.array([parts[i] for _, parts in bars])
        bottom = np.where(values >= 0, above, below)
        axis.bar(
            x, values, 0.7, bottom, color=colour, hatch=HATCHES[i], edgecolor="white", linewidth=0.4,
            label=part.replace("_", " "),
        )  # fmt: skip
        above, below = above + np.maximum(values, 0), below + np.minimum(values, 0)
    axis.plot(x, above + below, "D", color="black", markersize=5, label="measured")
    axis.set_xticks(x, [name for name, _ in bars], rotation=45, ha="right")
    axis.set_xlabel("criterion and number of steps")
    axis.set_ylabel("change of the loss, all steps (nats)")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.grid(alpha=0.3, axis="y")
    axis.legend(fontsize="small")
