"""A plane of the loss as a picture: contours, and the networks in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prunekit.drawing import INK, nothing, unit
from prunekit_plugins._landscape.moments import Found, found

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from prunekit.results import Results

_LEVELS = 14
_WIDE = 20  # largest over smallest loss, from which levels are of equal ratio
_MOST = 4
_AXES = {
    "random": ("first random direction", "second random direction"),
    "path": ("from dense to pruned", "from there towards fine-tuned"),
    "eigenvectors": ("top eigenvector", "second eigenvector"),
    "step": ("the step", "top eigenvector"),
}


def draw(results: Results, label: str, figure: Figure) -> None:
    """A panel for each moment; of many steps, some."""
    moments = found(results, label)
    if len(moments) > _MOST:
        moments = [moments[round(i)] for i in np.linspace(0, len(moments) - 1, _MOST)]
    panels = figure.subplots(1, len(moments), squeeze=False)[0]
    for axis, one in zip(panels, moments, strict=True):
        _contours(axis, one, figure, unit(results.summary))


def _contours(axis: Axes, one: Found, figure: Figure, name: str) -> None:
    from matplotlib.colors import LogNorm, Normalize

    plane, networks = one.arrays["plane"], one.arrays["networks"]
    values = np.ma.masked_invalid(plane["train_loss"])
    axis.set_title(f"Training loss {one.when}")
    axis.locator_params(nbins=5)
    axis.set_xlabel(f"{_AXES[one.summary['directions']][0]} (its length)")
    axis.set_ylabel(f"{_AXES[one.summary['directions']][1]} (its length)")
    known = values.compressed()
    if not len(known):
        nothing(axis, "no finite loss anywhere")
        return
    low, high = float(known.min()), float(known.max())
    axis.set_facecolor("#cccccc")  # where there is none
    if high > low:
        ratio = low > 0 and high > _WIDE * low
        levels = np.geomspace(low, high, _LEVELS) if ratio else np.linspace(low, high, _LEVELS)
        norm = LogNorm(low, high) if ratio else Normalize(low, high)
        # Above the highest level by rounding is still inside.
        levels[-1] = np.nextafter(high, np.inf)
        filled = axis.contourf(plane["x"], plane["y"], values, levels=levels, norm=norm, cmap="cividis")
        axis.contour(plane["x"], plane["y"], values, levels=levels, colors=INK, linewidths=0.4)
        bar = figure.colorbar(filled, ax=axis, format="%.3g")
        bar.set_label(f"loss ({name})")
    else:
        nothing(axis, f"{low:.4g} everywhere")
    x, y = networks["x"], networks["y"]
    axis.plot(x, y, "-", color="white", linewidth=2.5)
    axis.plot(x, y, "-o", color="#D55E00", linewidth=1.2, markeredgecolor="white")
    for place, mark in enumerate(one.summary["networks"]):
        axis.annotate(
            *(mark, (x[place], y[place])),
            xytext=(6, 6),
            textcoords="offset points",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            fontsize="small",
        )
