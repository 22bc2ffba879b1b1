"""Norms of the gradient as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prunekit.drawing import COLOURS, HATCHES, positive_scale, unit
from prunekit_plugins._landscape.moments import found

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from prunekit.results import Results

_NAMED = 24
"""Layers whose names still find room."""
_PANELS = 4


def draw(results: Results, label: str, figure: Figure) -> None:
    """A panel for each moment, of steps the last ones, on one scale."""
    moments = found(results, label)[-_PANELS:]
    figure.set_size_inches(max(6.0, 4.0 * len(moments)), 4.6)
    axes = figure.subplots(1, len(moments), squeeze=False, sharey=True)[0]
    values = []
    for axis, moment in zip(axes, moments, strict=True):
        names = moment.summary["layers"]
        for i, (key, text) in enumerate((("kept", "weights that are left"), ("pruned", "pruned weights"))):
            norms = np.asarray(moment.arrays["layers"][key], dtype=float)
            values += list(norms)
            axis.bar(
                np.arange(len(norms)) + 0.4 * (i - 0.5), norms, 0.4, color=COLOURS[(0, 2)[i]], hatch=HATCHES[(0, 2)[i]],
                edgecolor="white", linewidth=0.4, label=text,
            )  # fmt: skip
        shown = range(0, len(names), max(1, -(-len(names) // _NAMED)))
        texts = [names[i].replace("$", r"\$").removesuffix(".weight") for i in shown]
        axis.set_xticks(list(shown), texts, rotation=90 if len(names) > 4 else 0, fontsize="small")
        axis.set_xlabel("layer")
        axis.set_title(moment.when)
        axis.grid(alpha=0.3, axis="y")
    positive_scale(axes[0], [v for v in values if np.isfinite(v)])
    axes[0].set_ylabel(f"norm of the gradient ({unit(results.summary)})")
    axes[-1].legend(fontsize="small")
