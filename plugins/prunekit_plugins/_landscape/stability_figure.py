"""The stability of a criterion as a picture: how far independent draws of examples agree, over their number."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from prunekit.drawing import INK, nothing, style
from prunekit_plugins._landscape.moments import Found, found

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from prunekit.results import Results

_SHOWN = 6


def draw(results: Results, label: str, figure: Figure) -> None:
    """Two panels: overlap of the weights kept, and rank correlation; a curve for each moment, some of many."""
    moments = found(results, label)
    if len(moments) > _SHOWN:
        moments = [moments[round(i)] for i in np.linspace(0, len(moments) - 1, _SHOWN)]
    left, right = figure.subplots(1, 2)
    _curves(left, moments, "overlap")
    _curves(right, moments, "spearman")
    last = moments[-1]
    chance = last.summary["chance"]["overlap"]
    if chance is not None:
        left.axhline(chance, color=INK, linewidth=1, linestyle=":", label="two random masks")
    needed = last.summary["enough"]
    left.axhline(
        needed["overlap"], color=INK, linewidth=0.8, linestyle="--", label=f"wanted: {needed['overlap']:g}"
    )
    if needed["examples"] is not None:
        low, high = (needed["examples"] if needed[end] is None else needed[end] for end in ("low", "high"))
        left.axvline(needed["examples"], color=INK, linewidth=1)
        left.axvspan(
            low, high, color=INK, alpha=0.1, linewidth=0, label=f"enough: {needed['examples']:.3g} examples"
        )
    left.set_ylabel("overlap of what is kept (Jaccard)")
    right.set_ylabel("Spearman's ρ of saliencies")
    left.set_title(f"Masks of two draws, {last.summary['criterion']}".replace("$", r"\$"))
    right.set_title("Rankings of two draws (95 % intervals)")
    for axis in (left, right):
        axis.set_ylim(top=1.03)
        axis.set_xlabel("examples in a draw")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small")


def _curves(axis: Axes, moments: list[Found], key: str) -> None:
    drawn: list[float] = []
    for i, moment in enumerate(moments):
        sizes = moment.arrays["sizes"]
        x, value, low, high = (
            np.asarray(sizes[name], dtype=float) for name in ("examples", key, f"{key}_low", f"{key}_high")
        )
        look = style(i)
        axis.plot(x, value, label=moment.when, **look)
        axis.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
        drawn += x[np.isfinite(value)].tolist()
    if not any(map(isfinite, drawn)):
        nothing(axis, "nothing to compare")
        return
    axis.set_xscale("log")
    ticks = sorted(set(drawn))
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axis.set_xticks([], minor=True)
    axis.set_xlim(min(drawn) / 1.3, max(drawn) * 1.3)
