"""What pictures share, those of plugins too: colours, an axis of sparsity, ranges over orders of magnitude."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, log
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

COLOURS = ("#332288", "#56B4E9", "#E69F00", "#D55E00", "#F0E442")
"""Told apart by the colour-blind (after Okabe & Ito, and Tol), and of different lightness in grey."""
HATCHES = ("", "", "////", "", "xxxx")
INK = "#111111"

_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)
_NOTHING = 1e-5
_LEVELS = 14
_RATIO = 20  # largest over smallest value, from which contours are of equal ratio
_WIDE = 100  # largest over median size, from which a linear axis shows nothing but the largest


def places(sparsities: Iterable[float]) -> list[float]:
    """Where sparsities stand on an axis on which equal fractions of what is left take equal room.

    Where nothing is left, which would be infinitely far, they stand where one weight of 100,000 would be.
    """
    return [-log(max(1 - sparsity, _NOTHING)) for sparsity in sparsities]


def sparsity_axis(axis: Axes, last: float) -> None:
    """Label an axis of :func:`places` from 0 to the last sparsity."""
    letter = _letter(axis) * places([last])[0]
    spread, text = [last], f"{100 * last:.4g}"  # and going back from it
    for tick in sorted((tick for tick in _TICKS if tick < last), reverse=True):
        room = letter * (len(text) + len(f"{100 * tick:.4g}") + 3) / 2
        if places([spread[-1]])[0] - places([tick])[0] > room:
            spread.append(tick)
            text = f"{100 * tick:.4g}"
    axis.set_xticks(places(spread), [f"{100 * tick:.4g}" for tick in spread])
    axis.set_xlim(0, places([last])[0] * 1.02 or 1)
    axis.set_xlabel("sparsity (%)")
    axis.grid(alpha=0.3)


def _letter(axis: Axes) -> float:
    """Width of a digit of its labels, as a part of the axis, as far as can be told before it has its place."""
    from matplotlib import rcParams

    place = axis.get_subplotspec()
    panels = place.get_gridspec().ncols if place is not None else 1
    inches = axis.figure.bbox.width / axis.figure.dpi
    return float(0.65 * rcParams["font.size"] / 72 / (0.75 * inches / panels))


def unit(summary: Mapping[str, Any]) -> str:
    """Of the loss of a run with this summary, for a label."""
    loss = summary["spec"]["loss"]
    name = loss["name"] if loss else ""
    return "nats" if "entropy" in name or "bce" in name else "loss"


def threshold(values: Iterable[float]) -> float | None:
    """Up to which size an axis should be linear, where sizes spread too far for a linear one; else ``None``."""
    sizes = sorted(abs(v) for v in values if isfinite(v) and v != 0)
    if not sizes or sizes[-1] < _WIDE * sizes[len(sizes) // 2]:
        return None
    return max(sizes[len(sizes) // 4], sizes[-1] * 1e-6)


def numbers(rows: Sequence[object], key: str) -> list[float]:
    """A column of some rows; NaN where there is nothing."""
    values = [row.get(key) if isinstance(row, dict) else None for row in rows]
    return [float("nan") if value is None else float(value) for value in values]


STYLES = tuple(
    (colour, mark, line)
    for line, marks in (("-", "os^D"), ("--", "vP*X"))
    for colour, mark in zip(COLOURS, marks, strict=False)
)
"""Colour, mark and kind of line, for curves in one axis: what colour does not tell apart, marks do."""


def style(number: int) -> dict[str, Any]:
    """How the curve of this number is drawn."""
    colour, mark, line = STYLES[number % len(STYLES)]
    return {"color": colour, "marker": mark, "linestyle": line, "markersize": 4.5, "linewidth": 1.4}


def nothing(axis: Axes, text: str) -> None:
    """Say in an axis why it is empty."""
    axis.text(0.5, 0.5, text, ha="center", va="center", wrap=True, transform=axis.transAxes, color=INK)


def positive_scale(axis: Axes, values: Iterable[float]) -> None:
    """A logarithmic y-axis where positive values spread over more than a linear one shows."""
    sizes = sorted(v for v in values if isfinite(v) and v > 0)
    if sizes and sizes[-1] > _WIDE * sizes[0]:
        axis.set_yscale("log", nonpositive="mask")


def contours(axis: Axes, x: np.ndarray, y: np.ndarray, values: np.ndarray, name: str) -> None:
    """Fill a plane with contours, with a bar beside it; of equal ratios where values spread.

    Args:
        axis: In which nothing is drawn yet.
        x: Columns' places.
        y: Rows' places.
        values: Of shape ``[len(y), len(x)]``; what is not finite stays grey.
        name: Of the values, with their unit.
    """
    import numpy as np
    from matplotlib.colors import LogNorm, Normalize

    shown = np.ma.masked_invalid(values)
    known = shown.compressed()
    if not len(known):
        nothing(axis, "no finite number anywhere")
        return
    low, high = float(known.min()), float(known.max())
    axis.set_facecolor("#cccccc")  # where there is none
    if high <= low:
        nothing(axis, f"{low:.4g} everywhere")
        return
    ratio = low > 0 and high > _RATIO * low
    levels = np.geomspace(low, high, _LEVELS) if ratio else np.linspace(low, high, _LEVELS)
    norm = LogNorm(low, high) if ratio else Normalize(low, high)
    # Above the highest level by rounding is still inside.
    levels[-1] = np.nextafter(high, np.inf)
    filled: Any = axis.contourf(x, y, shown, levels=levels, norm=norm, cmap="cividis")
    filled.prunekit_grid = x, y, np.asarray(values, dtype=float), ratio, name  # for the page
    axis.contour(x, y, shown, levels=levels, colors=INK, linewidths=0.4)
    bar = axis.figure.colorbar(filled, ax=axis, format="%.3g")
    bar.set_label(name)
