"""Layers as a picture: what is left of them, what their saliencies are like, and units that do not work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prunekit.drawing import COLOURS, HATCHES, INK, nothing, positive_scale
from prunekit_plugins._landscape.moments import Found, found

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from prunekit.results import Results

_NAMED = 24
"""Layers whose names still find room."""

_FEW = 10
"""Percent of a layer, below which a linear axis shows nothing of it."""

_UNITS = (
    ("units_without_input", "no input"),
    ("units_without_output", "no output"),
    ("dead_units", "dead on the examples"),
)


def draw(results: Results, label: str, figure: Figure) -> None:
    """Three panels, a bar for each layer, as they are at the last moment."""
    moment = found(results, label)[-1]
    figure.set_size_inches(15, 4.6)
    axes = figure.subplots(1, 3)
    names = list(moment.summary["layers"])
    _left(axes[0], moment)
    _saliency(axes[1], moment)
    _units(axes[2], moment)
    for axis in axes:
        places = range(len(names))
        shown = places if len(names) <= _NAMED else range(0, len(names), -(-len(names) // _NAMED))
        texts = [names[i].replace("$", r"\$").removesuffix(".weight") for i in shown]
        axis.set_xticks(list(shown), texts, rotation=90 if len(names) > 4 else 0, fontsize="small")
        axis.set_xlim(-0.6, len(names) - 0.4)
        axis.set_xlabel("layer")
        axis.grid(alpha=0.3, axis="y")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small")


def _column(moment: Found, key: str) -> np.ndarray:
    return np.asarray(moment.arrays["layers"][key], dtype=float)


def _left(axis: Axes, moment: Found) -> None:
    """Fractions of each layer; where paths are not known, only what is kept. A layer with nothing left is crossed."""
    kept, used = (100 * (1 - _column(moment, key)) for key in ("sparsity", "effective_sparsity"))
    x = np.arange(len(kept))
    for values, width, colour, text in (
        (kept, 0.75, COLOURS[1], "kept"),
        (used, 0.45, COLOURS[0], "kept and on a path"),
    ):
        there = np.isfinite(values) & (values > 0)
        if there.any():
            axis.bar(x[there], values[there], width, color=colour, edgecolor=INK, linewidth=0.4, label=text)
    for key, line, text in (
        ("sparsity", ":", "network, kept"),
        ("effective_sparsity", "--", "network, on a path"),
    ):
        value = moment.summary[key]
        if value is not None and value < 1:
            axis.axhline(100 * (1 - value), color=INK, linewidth=1, linestyle=line, label=text)
    sizes = [v for v in (*kept, *used) if v > 0]
    if sizes and min(sizes) < _FEW:
        axis.set_yscale("log")
        axis.set_ylim(min(sizes) / 2, 130)
    else:
        axis.set_ylim(0, 105)
    gone = (kept == 0) | (used == 0)
    if gone.any():
        bottom = axis.get_ylim()[0]
        axis.plot(
            x[gone], [bottom] * int(gone.sum()), "x", color=COLOURS[3], markersize=9, markeredgewidth=2, clip_on=False,
            label="collapsed",
        )  # fmt: skip
    axis.set_ylabel("weights left (%)")
    axis.set_title(f"Weights left, {moment.when}")


def _saliency(axis: Axes, moment: Found) -> None:
    """Boxes from the quantiles, on a logarithmic axis where they spread."""
    low, lower, middle, upper, high = _column(moment, "saliency").T
    x = np.arange(len(middle))
    there = np.isfinite(middle)
    if not there.any():
        nothing(axis, "no saliencies")
    else:
        axis.vlines(x[there], low[there], high[there], color=INK, linewidth=1, label="5 to 95 %")
        axis.bar(
            x[there], (upper - lower)[there], 0.5, lower[there], color=COLOURS[2], edgecolor=INK, linewidth=0.6,
            label="25 to 75 %",
        )  # fmt: skip
        axis.plot(x[there], middle[there], "_", color=INK, markersize=12, markeredgewidth=2, label="median")
        positive_scale(axis, [*low[there], *high[there]])
        bottom, top = axis.get_ylim()
        axis.set_ylim(bottom, top * 1.25 if top > 0 else top)  # room for the legend
    axis.set_ylabel("saliency")
    axis.set_title("Saliencies of the kept weights")


def _units(axis: Axes, moment: Found) -> None:
    """Fractions of each layer's units."""
    units = _column(moment, "units")
    width, drawn = 0.8 / len(_UNITS), False
    for i, (key, text) in enumerate(_UNITS):
        with np.errstate(invalid="ignore", divide="ignore"):
            share = 100 * _column(moment, key) / units
        if np.isfinite(share).any():
            drawn = True
            x = np.arange(len(units)) + (i - 1) * width
            axis.bar(
                x, np.nan_to_num(share), width, color=COLOURS[(0, 2, 3)[i]], hatch=HATCHES[(0, 2, 4)[i]],
                edgecolor="white", linewidth=0.4, label=text,
            )  # fmt: skip
    if not drawn:
        nothing(axis, "not known of this network")
    axis.set_ylim(0, 105)
    axis.set_ylabel("units (%)")
    axis.set_title("Units that do not work")
