"""A plane of the loss as a picture: contours, and the networks in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prunekit.drawing import contours, unit
from prunekit_plugins._landscape.moments import Found, found

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from prunekit.results import Results

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
        _contours(axis, one, unit(results.summary))


def _contours(axis: Axes, one: Found, name: str) -> None:
    plane, networks = one.arrays["plane"], one.arrays["networks"]
    axis.set_title(f"Training loss {one.when}")
    axis.locator_params(nbins=5)
    axis.set_xlabel(f"{_AXES[one.summary['directions']][0]} (its length)")
    axis.set_ylabel(f"{_AXES[one.summary['directions']][1]} (its length)")
    contours(axis, plane["x"], plane["y"], plane["train_loss"], f"loss ({name})")
    x, y = networks["x"], networks["y"]
    axis.plot(x, y, "-", color="white", linewidth=2.5)
    axis.plot(x, y, "-o", color="#D55E00", linewidth=1.2, markeredgecolor="white")
    for place, mark in enumerate(one.summary["networks"]):
        axis.annotate(
            *(mark.replace("finetuned", "fine-tuned"), (x[place], y[place])),
            xytext=(6, 6),
            textcoords="offset points",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            fontsize="small",
        )
