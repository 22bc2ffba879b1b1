"""The oracle as a picture: how well criteria rank, and what the weights that they would take really cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.drawing import (
    INK,
    nothing,
    places,
    positive_scale,
    sparsity_axis,
    style,
    unit,
)
from prunekit_plugins._landscape.moments import Found, found

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from prunekit.results import Results

_BINS = 20


def draw(results: Results, label: str, figure: Figure) -> None:
    """Two panels: rank correlations with their intervals, and the cost of weights in the order of each criterion."""
    moments = found(results, label)
    left, right = figure.subplots(1, 2)
    names = list(moments[-1].summary["criteria"])
    if len(moments) == 1:
        _one(left, moments[0], names)
    else:
        _over_sparsity(left, moments, names)
    _costs(right, moments[-1], names, unit(results.summary))


def _column(moment: Found, key: str) -> np.ndarray:
    return np.asarray(moment.arrays["criteria"][key], dtype=float)


def _one(axis: Axes, moment: Found, names: list[str]) -> None:
    """A row for each criterion."""
    rows = np.arange(len(names))[::-1]
    looks: dict[str, dict[str, Any]] = {
        "spearman": {"fmt": "o", "color": INK, "label": "Spearman's ρ"},
        "kendall": {"fmt": "s", "color": "#777777", "mfc": "white", "label": "Kendall's τ"},
    }
    for (key, look), shift in zip(looks.items(), (0.12, -0.12), strict=True):
        value, low, high = (_column(moment, f"{key}{end}") for end in ("", "_low", "_high"))
        ends = np.nan_to_num(np.abs(np.stack([value - low, high - value])))
        axis.errorbar(value, rows + shift, xerr=ends, capsize=3, markersize=5, **look)
    axis.set_yticks(rows, [_spoken(name) for name in names])
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.set_xlim(min(-0.05, axis.get_xlim()[0]), 1.02)
    axis.set_xlabel("rank correlation with the true change (95 % intervals)")
    axis.set_title(f"How well criteria rank, {moment.when}")
    axis.grid(alpha=0.3, axis="x")
    axis.legend(fontsize="small", loc="best")


def _over_sparsity(axis: Axes, moments: list[Found], names: list[str]) -> None:
    """A curve of Spearman's correlation for each criterion."""
    x = places(moment.sparsity for moment in moments)
    for i, name in enumerate(names):
        value, low, high = (
            [_column(moment, f"spearman{end}")[i] for moment in moments] for end in ("", "_low", "_high")
        )
        look: dict[str, Any] = style(i)
        axis.plot(x, value, label=_spoken(name), **look)
        axis.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
    sparsity_axis(axis, max(moment.sparsity for moment in moments))
    axis.set_ylabel("Spearman's ρ with the true change")
    axis.set_title("How well criteria rank (95 % intervals)")
    axis.legend(fontsize="small")


def _costs(axis: Axes, moment: Found, names: list[str], units: str) -> None:
    """Medians of bins of equal numbers of weights."""
    truth = np.abs(np.asarray(moment.arrays["weights"]["delta_loss"], dtype=float))
    drawn: list[float] = []
    everything: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        ("the oracle itself", truth, {"color": INK, "linestyle": ":", "linewidth": 1.6})
    ]
    for i, name in enumerate(names):
        everything.append(
            (_spoken(name), np.asarray(moment.arrays["criteria"]["saliency"][i], dtype=float), style(i))
        )
    for name, saliency, look in everything:
        there = np.isfinite(saliency) & np.isfinite(truth)
        order = truth[there][np.argsort(saliency[there], kind="stable")]
        if not len(order):
            continue
        parts = np.array_split(order, min(_BINS, max(5, len(order) // 8), len(order)))
        medians = [float(np.median(part)) for part in parts]
        middles = (np.arange(len(parts)) + 0.5) * 100 / len(parts)
        axis.plot(middles, medians, label=name, **look)
        drawn += medians
    axis.set_xlim(0, 100)
    axis.set_xlabel("weights in the criterion's order (%)")
    axis.set_ylabel(rf"size of the true $\Delta\mathcal{{L}}$ ({units})")
    axis.set_title(f"What they cost, {moment.when} (medians)")
    axis.grid(alpha=0.3)
    if not drawn:
        nothing(axis, "no weights")
        return
    positive_scale(axis, drawn)
    axis.legend(fontsize="small")


def _spoken(name: str) -> str:
    """Without what matplotlib would take for mathematics, or for a line that is not in the legend."""
    return name.replace("$", r"\$").lstrip("_") or name
