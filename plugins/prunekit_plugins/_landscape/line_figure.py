"""The loss between the networks of a run as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prunekit.drawing import COLOURS, INK, nothing, positive_scale, unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from prunekit.results import Results

_LOSSES = (
    ("train_loss", "training loss", "-", COLOURS[0]),
    ("valid_loss", "validation loss", "--", COLOURS[3]),
)
_PARABOLAS = (("hessian_parabola", "quadratic model", ":"), ("ggn_parabola", "its Gauss-Newton part", "-."))


def draw(results: Results, label: str, figure: Figure) -> None:
    """A panel for each line."""
    lines = results.probe(label)
    if not lines:
        nothing(figure.subplots(), "there was one network only")
        return
    panels = figure.subplots(1, len(lines), squeeze=False)[0]
    for axis, (name, found) in zip(panels, lines.items(), strict=True):
        shown = []
        for key, what, line, colour in _LOSSES:
            if key in found:
                axis.plot(found["place"], found[key], line, color=colour, label=what)
                shown.append(found[key])
        together = np.concatenate(shown) if shown else np.array([0.0, 1.0])
        low, high = np.nanmin(together), np.nanmax(together)
        for key, what, line in _PARABOLAS:
            values = found.get(key)
            if values is not None and np.isfinite(values).any():
                # A parabola may leave the picture at once; where it does is what it is there for.
                inside = np.where(values <= high + (high - low), values, np.nan)
                axis.plot(found["place"], inside, line, color=INK, linewidth=1, label=what)
        positive_scale(axis, together)
        start, _, end = name.replace("finetuned", "fine-tuned").partition("_to_")
        axis.set_title(f"From {start} to {end}")
        axis.set_xlabel("fraction of the way")
        axis.set_ylabel(f"loss ({unit(results.summary)})")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
