"""The figures of a run by their names: losses, how honest the predictions were, layers, and what each probe draws."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

from prunekit.drawing import COLOURS, INK, numbers, places, sparsity_axis, style, threshold, unit
from prunekit.errors import ResultsError, SpecError
from prunekit.visible import drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from prunekit.observing.probe import Probe
    from prunekit.records import Row
    from prunekit.results import Results

_SPLITS = (("train", "training"), ("valid", "validation"), ("test", "test"))
_NAMED = 8
"""Layers whose names find room."""

RUN = "run"
"""The whole run: the three below side by side."""


def figure(results: Results, name: str = RUN, probes_only: bool = False) -> Callable[[Figure], None]:
    """What draws a figure of this name.

    Args:
        results: Opened.
        name: ``run``, ``loss``, ``honesty``, ``layers``, or a probe's label, which comes before a name of these but
            ``run``.
        probes_only: Whether the run's own figures are left out.

    Raises:
        SpecError: If there is no such figure, with those that there are.
        ResultsError: If there is nothing to draw yet.
    """
    probes = _pictures(results)
    if name != RUN and name in results.summary["probes"]:
        if name not in probes and name not in _FIGURES:
            raise SpecError(f"--figure: {name!r} has no picture; accepted: {_accepted(probes)}")
        if name in probes:
            return _of_probe(results, name, probes[name])
    if name not in _FIGURES or probes_only:
        raise SpecError(f"--figure: {name!r} is not a probe of this run; accepted: {_accepted(probes)}")
    if not results.summary["steps"]:
        raise ResultsError(f"{results.path}: no steps yet, so there is nothing to draw")
    return of_run(results.summary, name)


def of_run(summary: Row, name: str) -> Callable[[Figure], None]:
    """What draws one of the run's own figures, when there are steps."""
    return partial(_FIGURES[name], summary)


def title(results: Results) -> str:
    """What a figure is of."""
    spec = results.summary["spec"]
    text = f"{spec['name']}: {spec['model']['name']} on {spec['dataset']['name']}"
    return text if spec["prune"] is None else f"{text}, {spec['prune']['criterion']['name']}"


def _accepted(probes: dict[str, type[Probe]]) -> str:
    return ", ".join([*_FIGURES, *(label for label in probes if label not in _FIGURES)])


def _pictures(results: Results) -> dict[str, type[Probe]]:
    """Labels of the probes in the file that draw, and what does."""
    from prunekit.observing.probe import Probe
    from prunekit.plugins.host import PluginManager

    manager = PluginManager()
    known = set(manager.names("probe"))
    kinds = {label: results.probe_kind(label) for label in results.summary["probes"]}
    made = {label: manager.get("probe", kind) for label, kind in kinds.items() if kind in known}
    return {label: one for label, one in made.items() if issubclass(one, Probe) and one.has_picture()}


def _of_probe(results: Results, label: str, probe: type[Probe]) -> Callable[[Figure], None]:
    if not results.summary["probes"][label].get("steps", True):
        raise ResultsError(f"{results.path}: probe {label!r} has found nothing yet")

    def fill(figure: Figure) -> None:
        try:
            probe.draw(results, label, figure)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ResultsError(
                f"{results.path}: probe {label!r} cannot be drawn from its results: {type(error).__name__}: {error}"
            ) from error

    return fill


def _run(summary: Row, figure: Figure) -> None:
    width, height = figure.get_size_inches()
    figure.set_size_inches(1.25 * width, height)
    axes = figure.subplots(1, 3)
    _losses(axes[0], summary)
    _changes(axes[1], summary)
    _layers(axes[2], summary)


def _loss(summary: Row, figure: Figure) -> None:
    splits = any(v is not None for v in (summary["dense"] or {}).values() if isinstance(v, float))
    with_errors = splits and any(f"{s}_error" in (summary["steps"][0]) for s, _ in _SPLITS)
    if not with_errors:
        _losses(figure.subplots(), summary)
        return
    left, right = figure.subplots(1, 2)
    _losses(left, summary)
    _losses(right, summary, "error", 100)


def _honesty(summary: Row, figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    _changes(left, summary)
    _calibration(right, summary)


def _layers_alone(summary: Row, figure: Figure) -> None:
    _layers(figure.subplots(), summary)


_FIGURES: dict[str, Callable[[Row, Figure], None]] = {
    RUN: _run,
    "loss": _loss,
    "honesty": _honesty,
    "layers": _layers_alone,
}


def _steps(axis: Axes, summary: Row) -> list[float]:
    """Set up an axis of sparsity; where its steps are."""
    sparsity_axis(axis, summary["steps"][-1]["sparsity"])
    return places(step["sparsity"] for step in summary["steps"])


def _losses(axis: Axes, summary: Row, what: str = "loss", scale: float = 1) -> None:
    x = _steps(axis, summary)
    seen: list[float] = []
    for i, (split, word) in enumerate(_SPLITS):
        key = f"{split}_{what}"
        y = [scale * v for v in numbers(summary["steps"], key)]
        if not any(map(isfinite, y)):
            continue
        dense, tuned = (scale * numbers([summary[phase]], key)[0] for phase in ("dense", "finetuned"))
        at = [i for i, step in enumerate(summary["steps"]) if step.get(key) is not None]
        axis.plot([0, *(x[i] for i in at)], [dense, *(y[i] for i in at)], **style(i), label=word)
        if isfinite(tuned):
            colour = style(i)["color"]
            axis.plot(x[-1], tuned, "*", color=colour, markersize=11, label=f"{word}, fine-tuned")
        seen += [dense, *y, tuned]
    _spread(axis, seen)
    symbol, of_what = (r", $\mathcal{L}$", unit(summary)) if what == "loss" else ("", "%")
    axis.set_ylabel(f"{what}{symbol} ({of_what})")
    axis.set_title(f"{what.capitalize()} while pruning")
    if seen:
        axis.legend(fontsize="small")


def _changes(axis: Axes, summary: Row) -> None:
    x = _steps(axis, summary)
    measured, predicted = _of_steps(summary)
    axis.plot(x, measured, "o-", color=COLOURS[0], markersize=4.5, label="measured")
    if any(map(isfinite, predicted)):
        axis.plot(x, predicted, "s--", color=COLOURS[3], markersize=4, fillstyle="none", label="predicted")
    linear = threshold([*measured, *predicted])
    if linear is not None:  # changes span orders of magnitude, and have both signs
        axis.set_yscale("symlog", linthresh=linear)
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.set_ylabel(rf"change in a step, $\Delta\mathcal{{L}}$ ({unit(summary)})")
    axis.set_title("Predicted and measured")
    axis.legend(fontsize="small")


def _calibration(axis: Axes, summary: Row) -> None:
    """Each step as a dot; on the line, the prediction was right."""
    measured, predicted = _of_steps(summary)
    pairs = [(p, m) for p, m in zip(predicted, measured, strict=True) if isfinite(p) and isfinite(m)]
    axis.set_xlabel(rf"predicted $\Delta\mathcal{{L}}$ ({unit(summary)})")
    axis.set_ylabel(rf"measured $\Delta\mathcal{{L}}$ ({unit(summary)})")
    axis.set_title("Step by step")
    axis.grid(alpha=0.3)
    if not pairs:
        axis.text(0.5, 0.5, "the criterion predicts no change", ha="center", transform=axis.transAxes)
        return
    linear = threshold(v for pair in pairs for v in pair)
    if linear is not None:
        axis.set_xscale("symlog", linthresh=linear)
        axis.set_yscale("symlog", linthresh=linear)
    ends = [min(min(pair) for pair in pairs), max(max(pair) for pair in pairs)]
    axis.plot(ends, ends, "--", color=INK, linewidth=0.8, label="as predicted")
    axis.plot(
        [p for p, _ in pairs], [m for _, m in pairs], "o", color=COLOURS[0], markersize=5, label="steps"
    )
    axis.legend(fontsize="small")


def _layers(axis: Axes, summary: Row) -> None:
    from matplotlib import colormaps

    x = _steps(axis, summary)
    names, shades = list(summary["steps"][0]["layers"]), colormaps["viridis"]
    lines = []
    for i, name in enumerate(names):
        y = [100 * step["layers"][name] for step in summary["steps"]]
        shade = shades(0.9 * i / max(1, len(names) - 1))
        mark = style(i)["marker"] if len(names) <= _NAMED else ""
        look: dict[str, Any] = {"color": shade, "marker": mark, "markersize": 3.5, "linewidth": 1.2}
        lines += axis.plot([0, *x], [0, *y], label=drawn(name), **look)
    whole = [100 * step["sparsity"] for step in summary["steps"]]
    lines += axis.plot([0, *x], [0, *whole], ":", color=INK, linewidth=1.2, label="whole network")
    axis.set_ylabel("sparsity of the layer (%)")
    axis.set_title("Layers")
    shown = range(len(names)) if len(names) <= _NAMED else (0, len(names) - 1)
    # By hand: what begins with "_" would be left out.
    texts = [drawn(names[i]) for i in shown] if len(names) <= _NAMED else ["first layer", "last layer"]
    axis.legend([*(lines[i] for i in shown), lines[-1]], [*texts, "whole network"], fontsize="x-small")


def _of_steps(summary: Row) -> tuple[list[float], list[float]]:
    """Measured and predicted changes."""
    steps = summary["steps"]
    return numbers(steps, "delta_loss"), numbers(steps, "predicted_delta_loss")


def _spread(axis: Axes, values: list[float]) -> None:
    """A logarithmic axis where positive values spread over more than a linear one shows."""
    sizes = sorted(v for v in values if isfinite(v))
    if sizes and sizes[0] > 0 and sizes[-1] > 100 * sizes[0]:
        axis.set_yscale("log")
