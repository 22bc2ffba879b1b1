"""Figures as data for plotly.js, made from what a drawing function has put into a matplotlib figure.

So a picture and the page show the same, also of a third party's probe, from one function. What is converted: lines,
bars, bands, error bars, points, contours that :func:`prunekit.drawing.contours` has drawn, spans, texts, legends, scales.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prunekit.reports.page import artists
from prunekit.reports.page.scales import Made, Scale, text
from prunekit.reports.picture import default_style, thin_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def converted(fill: Callable[[Figure], None]) -> list[Made] | None:
    """The panels of what a function draws; ``None`` if something in it cannot be converted."""
    with default_style({}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4.6))
        fill(figure)
        thin_out(figure)
        try:
            return panels(figure)
        except artists.NotConvertedError:
            return None


def panels(figure: Figure) -> list[Made]:
    """A plotly figure, ``data`` and ``layout``, for each of a figure's axes.

    Raises:
        NotConvertedError: If one holds what is not converted, such as an image.
    """
    shown = [axes for axes in figure.axes if axes.get_visible() and axes.get_label() != "<colorbar>"]
    return [_panel(axes) for axes in shown]


def _panel(axes: Axes) -> Made:
    x, y = Scale(axes.xaxis, axes.get_xlim()), Scale(axes.yaxis, axes.get_ylim())
    scales = (x, y)
    data: list[Made] = []
    shapes: list[Made] = []
    done: set[int] = set()
    for make in (artists.contours, artists.containers):
        data += make(axes, scales, done)
    for collection in axes.collections:
        if id(collection) not in done:
            data += artists.collected(collection, scales)
    for patch in axes.patches:
        if id(patch) not in done:
            shapes.append(artists.span(axes, patch, scales))
    for line in axes.lines:
        if id(line) in done:
            continue
        whole = artists.whole_line(axes, line, scales)
        if whole is None:
            data.append(artists.line(axes, line, scales))
        else:
            shapes.append(whole)
    if axes.images:
        raise artists.NotConvertedError("images")
    listed = {
        text(label.get_text())
        for legend in (axes.get_legend(), *axes.figure.legends)
        if legend is not None
        for label in legend.get_texts()
    }
    for one in (*data, *shapes):
        one["showlegend"] = bool(one.get("showlegend")) and one["name"] in listed
    layout = {
        "title": {"text": text(axes.get_title())},
        "xaxis": x.layout(),
        "yaxis": y.layout(),
        "shapes": shapes,
        "annotations": list(artists.texts(axes, scales)),
        "showlegend": any(one["showlegend"] for one in (*data, *shapes)),
        "barmode": "overlay",
    }
    return {"data": data, "layout": layout}
