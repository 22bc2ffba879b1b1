"""A sweep as a picture: the change of the loss over a parameter, a curve for each criterion, a panel for each of another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import TYPE_CHECKING

from prunekit.drawing import STYLES, threshold
from prunekit.errors import ResultsError
from prunekit.records import Plain, Row
from prunekit.sweeps.seeds import is_seed
from prunekit.visible import drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = 6
_UPRIGHT = 6  # values whose labels find room side by side
_CRITERION, _LAMBDA = "criterion", "lambda"


@dataclass(frozen=True)
class Axis:
    """What varies in a sweep.

    Attributes:
        name: As users know it.
        value: Of a row.
        values: All there are, in order.
    """

    name: str
    value: Callable[[Row], Plain]
    values: Sequence[Plain]


def check(rows: Sequence[Row]) -> None:
    """Refuse what has nothing to draw.

    Raises:
        ResultsError: If no run is complete and has pruned.
    """
    if not any(_drawn(row) for row in rows):
        raise ResultsError("nothing to draw: no run of the sweep that prunes is complete yet")


def fill(rows: Sequence[Row], parameters: Sequence[str], figure: Figure) -> None:
    """Draw the runs that are complete.

    Args:
        rows: Of all runs.
        parameters: Names of the sweep's parameters, seeds among them.
        figure: Empty.
    """
    done = [row for row in rows if _drawn(row)]
    along, panels = _axes(done, parameters)
    several = panels.values[:_PANELS] if panels is not None else [None]
    figure.set_size_inches(max(6.0, 1.5 + 3.6 * len(several)), 4.6)
    axes = figure.subplots(1, len(several), squeeze=False, sharey=True)[0]
    criteria = list(dict.fromkeys(str(row[_CRITERION]) for row in done))
    for place, (axis, value) in enumerate(zip(axes, several, strict=True)):
        here = [row for row in done if panels is None or panels.value(row) == value]
        for name, style in zip(criteria, _cycled(len(criteria)), strict=True):
            _curve(axis, [row for row in here if row[_CRITERION] == name], along, name, *style)
        if panels is not None:
            axis.set_title(drawn(f"{panels.name} = {_text(value)}"))
        turned = {"rotation": 45, "ha": "right"} if len(along.values) > _UPRIGHT else {}
        axis.set_xticks(range(len(along.values)), [drawn(_text(v)) for v in along.values], **turned)
        axis.set_xlabel(drawn(along.name))
        axis.grid(alpha=0.3)
        if not place:
            axis.set_ylabel("change of the training loss")
    _scale(axes[0], [float(row["train_delta_loss"]) for row in done])
    if along.name == _CRITERION:
        return
    handles, labels = axes[0].get_legend_handles_labels()
    for axis in axes[1:]:
        more = zip(*axis.get_legend_handles_labels(), strict=True)
        for handle, label in more:
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), fontsize="small")


def _drawn(row: Row) -> bool:
    value = row.get("train_delta_loss")
    return row["status"] == "complete" and _CRITERION in row and value is not None and isfinite(value)


def _axes(rows: Sequence[Row], parameters: Sequence[str]) -> tuple[Axis, Axis | None]:
    """The axis along which curves go, and what panels are of: λ first, then the numbers with the most values.

    Where only the criterion varies, it is the axis.
    """
    found = [_axis("λ", lambda row: row.get(_LAMBDA), rows)]
    for name in parameters:
        if is_seed(name) or name.startswith("prune.criterion"):
            continue
        found.append(_axis(name, lambda row, name=name: row.get(name), rows))  # type: ignore[misc]
    varying = [axis for axis in found if len(axis.values) > 1]
    if not varying:
        return _axis(_CRITERION, lambda row: row[_CRITERION], rows), None
    first, *others = varying
    return first, max(others, key=lambda axis: len(axis.values), default=None)


def _axis(name: str, value: Callable[[Row], Plain], rows: Iterable[Row]) -> Axis:
    there: Mapping[str, Plain] = {json.dumps(value(row)): value(row) for row in rows}
    plain = all(isinstance(v, int | float) for v in there.values())
    return Axis(name, value, sorted(there.values()) if plain else list(there.values()))


def _curve(
    axis: Axes, rows: Sequence[Row], along: Axis, name: str, colour: str, mark: str, line: str
) -> None:
    """Mean over the rows of each place, seeds mostly, and their standard deviation."""
    places, means, spreads = [], [], []
    for place, value in enumerate(along.values):
        losses = [float(row["train_delta_loss"]) for row in rows if along.value(row) == value]
        if losses:
            mean = sum(losses) / len(losses)
            places.append(place)
            means.append(mean)
            spreads.append(sqrt(sum((v - mean) ** 2 for v in losses) / max(1, len(losses) - 1)))
    if (
        len(places) == 1 < len(along.values) and along.name != _CRITERION
    ):  # what has no such parameter is the same all along
        axis.axhline(means[0], color=colour, linestyle=":", alpha=0.6)
    if places:
        axis.errorbar(
            places, means, spreads, color=colour, marker=mark, linestyle=line, label=drawn(name), capsize=2
        )


def _scale(axis: Axes, values: Sequence[float]) -> None:
    if min(values) > 0 and max(values) > 10 * min(values):
        axis.set_yscale("log")
    elif (linear := threshold(values)) is not None:
        axis.set_yscale("symlog", linthresh=linear)


def _cycled(count: int) -> list[tuple[str, str, str]]:
    return [STYLES[i % len(STYLES)] for i in range(count)]


def _text(value: Plain) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_text(one)}" for key, one in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
