"""Runs side by side as a picture."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

from prunekit.drawing import places as at
from prunekit.drawing import sparsity_axis
from prunekit.visible import drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from prunekit.reports.compare import Comparison

_COLOURS = ("#332288", "#E69F00", "#56B4E9", "#D55E00", "#117733", "#CC79A7", "#999933", "#882255")
_MARKS = "osD^vP*X"
_LINES = ("-", "--", ":")


def fill(comparison: Comparison, figure: Figure) -> None:
    """Two panels: the training loss over sparsity, and what each run ends with."""
    figure.set_size_inches(11, max(4.6, 1.5 + 0.28 * len(comparison.runs)))
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    last = 0.0
    for place, (row, (sparsities, losses)) in enumerate(zip(comparison.runs, comparison.curves, strict=True)):
        known = [(s, v) for s, v in zip(sparsities, losses, strict=True) if v is not None and isfinite(v)]
        if not known:
            continue
        last = max(last, known[-1][0])
        left.plot(
            at(s for s, _ in known),
            [v for _, v in known],
            _LINES[place // len(_COLOURS) % len(_LINES)],
            marker=_MARKS[place % len(_MARKS)],
            color=_COLOURS[place % len(_COLOURS)],
            markersize=4,
            label=drawn(row["name"]),
        )
    sparsity_axis(left, last)
    left.set_ylabel("training loss after a step")
    left.set_title("Loss while pruning")
    handles = left.get_lines()
    if len(handles) <= 12 and handles:
        left.legend(handles, [drawn(str(h.get_label())) for h in handles], fontsize="small")
    metric = (
        "test_error"
        if any((r["pruned"] or {}).get("test_error") is not None for r in comparison.runs)
        else "test_loss"
    )
    scale = 100 if metric == "test_error" else 1
    places = list(range(len(comparison.runs)))
    for phase, marker, colour in (("pruned", "o", _COLOURS[0]), ("finetuned", "s", _COLOURS[3])):
        values = [(row[phase] or {}).get(metric) for row in comparison.runs]
        shown = [(v * scale, p) for v, p in zip(values, places, strict=True) if v is not None and isfinite(v)]
        if shown:
            label = "fine-tuned" if phase == "finetuned" else phase
            right.plot([v for v, _ in shown], [p for _, p in shown], marker, color=colour, label=label)
    right.set_yticks(places, [drawn(row["name"]) for row in comparison.runs])
    right.invert_yaxis()
    right.set_xlabel("test error (%)" if scale == 100 else "test loss")
    right.set_title("At the end")
    right.grid(alpha=0.3)
    if right.get_lines():
        right.legend(fontsize="small")
