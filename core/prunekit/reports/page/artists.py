"""What a drawing function puts into axes, as plotly's traces and shapes: lines, bars, bands, points, contours, texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.reports.page.scales import Made, Scale, numbers, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES = {"--": "dash", ":": "dot", "-.": "dashdot"}
_MARKS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "v": "triangle-down",
    "D": "diamond",
    "x": "x-thin",
}
_MARKS |= {
    "P": "cross",
    "*": "star",
    "X": "x",
    ".": "circle",
    "_": "line-ew",
    "|": "line-ns",
    "+": "cross-thin",
}
_THIN = "x_|+"
_HATCHES = {"/": "/", "x": "x", "-": "-", "|": "|", "+": "+", "\\": "\\"}

Scales = tuple[Scale, Scale]
"""Of x and y."""


class NotConvertedError(Exception):
    """A figure holds something that there is no data for."""


def _named(artist: Any) -> Made:
    """A name in the legend, for what has one."""
    label = str(artist.get_label() or "")
    shown = bool(label) and not re.match(r"_(child|container|nolegend)", label)
    return {"name": text(label) if shown else "", "showlegend": shown}


def line(axes: Axes, drawn: Any, scales: Scales) -> Made:
    """A curve, or points."""
    from matplotlib.colors import to_hex

    raw_x, raw_y = (np.asarray(v, dtype=float) for v in drawn.get_data(orig=False))
    place = _frame(axes, drawn)
    if place == ("domain", "y"):  # marks along an edge
        raise NotConvertedError("points that stand on an edge")
    if place == ("x", "domain"):
        low, high = axes.get_ylim()
        transform = axes.yaxis.get_transform()
        ends = transform.transform(np.array([low, high]))
        raw_y = transform.inverted().transform(ends[0] + raw_y * (ends[1] - ends[0]))
    style, mark = drawn.get_linestyle(), str(drawn.get_marker())
    colour = to_hex(drawn.get_color())
    modes = [
        m for m, there in (("lines", style not in ("None", "", " ")), ("markers", mark in _MARKS)) if there
    ]
    filled = drawn.get_fillstyle() != "none"
    one: Made = {
        "type": "scatter",
        "mode": "+".join(modes) or "lines",
        "x": numbers(scales[0](raw_x)),
        "y": numbers(scales[1](raw_y)),
        "line": {"color": colour, "width": 1.4 * drawn.get_linewidth(), "dash": _DASHES.get(style, "solid")},
        "marker": {
            "color": colour,
            "size": 1.4 * drawn.get_markersize(),
            "symbol": _MARKS.get(mark, "circle") + ("" if filled else "-open"),
            "line": {"color": colour, "width": 2 if mark in _THIN else 0 if filled else 1.4},
        },
        **_named(drawn),
    }
    return _hover(one, scales, raw_x, raw_y)


def _hover(one: Made, scales: Scales, raw_x: np.ndarray, raw_y: np.ndarray) -> Made:
    """On a scale that plotly does not have, the real numbers are shown."""
    if all(scale.kind in ("linear", "log") for scale in scales):
        return one
    pairs = numbers(np.stack([raw_x, raw_y], axis=1))
    where = "%{customdata[0]:.4g}, %{customdata[1]:.4g}"
    return {**one, "customdata": pairs, "hovertemplate": where}


def _frame(axes: Axes, artist: Any) -> tuple[str, str]:
    """Whether an artist stands at numbers of the axes, or at fractions of their width and height."""
    in_x, in_y = artist.get_transform().contains_branch_seperately(axes.transData)
    return "x" if in_x else "domain", "y" if in_y else "domain"


def whole_line(axes: Axes, drawn: Any, scales: Scales) -> Made | None:
    """A line from edge to edge, as a shape; ``None`` for any other."""
    from matplotlib.colors import to_hex

    look = {
        "color": to_hex(drawn.get_color()),
        "width": 1.2 * drawn.get_linewidth(),
        "dash": _DASHES.get(drawn.get_linestyle(), "solid"),
    }
    if hasattr(drawn, "get_slope"):
        (x, y), slope = drawn.get_xy1(), drawn.get_slope()
        x0, x1 = (float(end) for end in axes.get_xlim())
        y0, y1 = (float(y + slope * (end - x)) for end in (x0, x1))
        return {"type": "line", "line": look, "x0": x0, "x1": x1, "y0": y0, "y1": y1}
    frame, (xs, ys) = _frame(axes, drawn), drawn.get_data()
    if frame == ("domain", "y") and list(xs) == [0, 1]:
        return {"type": "line", "line": look, **_across("x"), **_at("y", scales[1], ys[:1]), **_named(drawn)}
    if frame == ("x", "domain") and list(ys) == [0, 1]:
        return {"type": "line", "line": look, **_across("y"), **_at("x", scales[0], xs[:1]), **_named(drawn)}
    return None


def _across(axis: str) -> Made:
    """From edge to edge along an axis."""
    return {f"{axis}ref": f"{axis} domain", f"{axis}0": 0, f"{axis}1": 1}


def _at(axis: str, scale: Scale, ends: Any) -> Made:
    """From a number to another, or at one."""
    placed = scale(np.asarray(ends, dtype=float))
    return {f"{axis}0": float(placed[0]), f"{axis}1": float(placed[-1])}


def contours(axes: Axes, scales: Scales, done: set[int]) -> Iterator[Made]:
    """A plane with its numbers; what belongs to it is done.

    Raises:
        NotConvertedError: If its numbers are not told.
    """
    sets = [one for one in axes.collections if type(one).__name__ == "QuadContourSet"]
    told = [one for one in sets if hasattr(one, "prunekit_grid")]
    if sets and not told:
        raise NotConvertedError("contours whose numbers are not told; prunekit.drawing.contours tells them")
    done |= set(map(id, sets))  # lines between levels among them
    for one in told:
        x, y, z, logarithmic, unit = one.prunekit_grid
        shown = np.log10(np.where(np.asarray(z) > 0, z, np.nan)) if logarithmic else np.asarray(z)
        bar: Made = {"title": {"text": text(unit), "side": "right"}}
        if logarithmic:
            ticks = np.linspace(np.nanmin(shown), np.nanmax(shown), 6)
            bar |= {"tickvals": ticks.tolist(), "ticktext": [f"{10**t:.3g}" for t in ticks]}
        yield {
            "type": "contour",
            "x": numbers(scales[0](x)),
            "y": numbers(scales[1](y)),
            "z": numbers(shown),
            "customdata": numbers(z),
            "hovertemplate": "%{x:.3g}, %{y:.3g}: %{customdata:.5g}<extra></extra>",
            "colorscale": "Cividis",
            "ncontours": 14,
            "colorbar": bar,
            "name": "",
            "showlegend": False,
        }


def containers(axes: Axes, scales: Scales, done: set[int]) -> Iterator[Made]:
    """Bars and error bars; what belongs to them is done."""
    from matplotlib.container import BarContainer, ErrorbarContainer

    for container in axes.containers:
        if isinstance(container, BarContainer):
            done |= {id(patch) for patch in container.patches}
            if container.patches:
                yield _bars(axes, container, scales)
        elif isinstance(container, ErrorbarContainer):
            points, caps, ranges = container.lines
            done |= {id(one) for one in (points, *caps, *ranges)}
            yield line(axes, points, scales) | _errors(points, ranges) | _named(container)


def _bars(axes: Axes, container: Any, scales: Scales) -> Made:
    from matplotlib.colors import to_hex

    patches, lying = list(container.patches), container.orientation == "horizontal"
    boxes = np.array([[p.get_x(), p.get_y(), p.get_width(), p.get_height()] for p in patches], dtype=float)
    along, across = (0, 1) if lying else (1, 0)  # where the numbers are, and where the bars stand
    low, high = boxes[:, along], boxes[:, along] + boxes[:, 2 + along]
    bottom = (
        low if scales[along].kind != "log" else np.maximum(low, (axes.get_xlim, axes.get_ylim)[along]()[0])
    )
    base, top = scales[along](bottom), scales[along](high)
    first = patches[0]
    return {
        "type": "bar",
        "orientation": "h" if lying else "v",
        "xy"[across]: numbers(scales[across](boxes[:, across] + boxes[:, 2 + across] / 2)),
        "xy"[along]: numbers(top - base),
        "base": numbers(base),
        "width": numbers(boxes[:, 2 + across]),
        "marker": {
            "color": to_hex(first.get_facecolor()),
            "pattern": {"shape": _HATCHES.get((first.get_hatch() or " ")[0], "")},
        },
        "customdata": numbers(high - low),
        "hovertemplate": "%{customdata:.4g}",
        **_named(container),
    }


def _errors(points: Any, ranges: Iterable[Any]) -> Made:
    """Error bars as distances from the points."""
    found: Made = {}
    for collection in ranges:
        ends = np.array(collection.get_segments())
        if not len(ends):
            continue
        axis = 0 if np.all(ends[:, 0, 1] == ends[:, 1, 1]) else 1
        middle = np.asarray(points.get_data()[axis], dtype=float)
        found[("error_x", "error_y")[axis]] = {
            "type": "data",
            "symmetric": False,
            "thickness": 1.2,
            "width": 4,
            "array": numbers(ends[:, 1, axis] - middle),
            "arrayminus": numbers(middle - ends[:, 0, axis]),
        }
    return found


def collected(artist: Any, scales: Scales) -> Iterator[Made]:
    """Bands, segments and points.

    Raises:
        NotConvertedError: If it is something else.
    """
    from matplotlib.collections import LineCollection, PathCollection, PolyCollection
    from matplotlib.colors import to_hex

    if isinstance(artist, PathCollection):
        places: Any = artist.get_offsets()
        faces: Any = artist.get_facecolor()
        colours = [to_hex(face) for face in faces]
        places = np.asarray(places, dtype=float).reshape(-1, 2)
        look = {"color": colours[0] if len(colours) == 1 else colours, "size": 6}
        yield {
            "type": "scatter",
            "mode": "markers",
            "marker": look,
            **_pairs(places, scales),
            **_named(artist),
        }
    elif isinstance(artist, LineCollection):
        parts = _with_gaps(artist.get_segments())
        if len(parts):
            colour: Any = artist.get_color()
            look = {"color": to_hex(colour[0])}
            yield {
                "type": "scatter",
                "mode": "lines",
                "line": look,
                **_pairs(parts, scales),
                **_named(artist),
            }
    elif isinstance(artist, PolyCollection):
        outline = _with_gaps([path.vertices for path in artist.get_paths()])
        if len(outline):
            face: Any = artist.get_facecolor()
            red, green, blue = (round(255 * float(c)) for c in face[0][:3])
            yield {
                **{
                    "type": "scatter",
                    "mode": "lines",
                    "fill": "toself",
                    "hoverinfo": "skip",
                    "line": {"width": 0},
                },
                "fillcolor": f"rgba({red},{green},{blue},{max(0.15, float(face[0][3])):.2f})",
                **_pairs(outline, scales),
                **_named(artist),
            }
    else:
        raise NotConvertedError(type(artist).__name__)


def _with_gaps(lines: Iterable[Any]) -> np.ndarray:
    """Several lines as one, of shape ``[n, 2]``, which is interrupted between them."""
    parts = [np.vstack([np.asarray(one, dtype=float), [[np.nan, np.nan]]]) for one in lines if len(one)]
    return np.concatenate(parts) if parts else np.empty((0, 2))


def _pairs(places: np.ndarray, scales: Scales) -> Made:
    return {"x": numbers(scales[0](places[:, 0])), "y": numbers(scales[1](places[:, 1]))}


def span(axes: Axes, patch: Any, scales: Scales) -> Made:
    """A band from edge to edge.

    Raises:
        NotConvertedError: If it is any other patch.
    """
    from matplotlib.colors import to_hex

    frame = _frame(axes, patch)
    if frame == ("x", "y"):
        raise NotConvertedError("a patch")
    corners = patch.get_path().vertices
    if hasattr(patch, "get_x"):
        x, y = patch.get_xy()
        corners = np.array([[x, y], [x + patch.get_width(), y + patch.get_height()]])
    low, high = corners.min(axis=0), corners.max(axis=0)
    where, along = ("x", 0) if frame[0] == "x" else ("y", 1)
    return {
        "type": "rect",
        "fillcolor": to_hex(patch.get_facecolor()),
        "opacity": patch.get_alpha() or 0.15,
        "line": {"width": 0},
        **_at(where, scales[along], [low[along], high[along]]),
        **_across("y" if where == "x" else "x"),
        **_named(patch),
    }


def texts(axes: Axes, scales: Scales) -> Iterator[Made]:
    """Words in a figure, at numbers or at fractions of its width and height."""
    for one in axes.texts:
        x, y = getattr(one, "xy", one.get_position())
        frame = ("x", "y") if hasattr(one, "xy") else _frame(axes, one)
        place: Made = {}
        for name, value, scale, kind in zip("xy", (x, y), scales, frame, strict=True):
            inside = kind == name
            at = float(scale([value])[0]) if inside else float(value)
            if inside and scale.kind == "log":
                at = float(np.log10(value))
            place |= {name: at, f"{name}ref": name if inside else f"{name} domain"}
        if one.get_bbox_patch() is not None:
            place |= {"bgcolor": "rgba(255,255,255,0.8)", "font": {"color": "#111111"}}
        above = 12 if hasattr(one, "xy") else 0
        yield {"text": text(one.get_text()), "showarrow": False, **place, "yshift": above}
