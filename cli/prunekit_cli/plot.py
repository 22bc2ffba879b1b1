"""``prunekit inspect --plot``: the run in one figure, or what a probe found."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.errors import ResultsError, SpecError
from prunekit.records import Row
from prunekit.results.replacing import replacing
from prunekit.visible import drawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from prunekit.results import Results

_FORMATS = (".png", ".pdf", ".svg")
_SPLITS = (("train", "C0"), ("valid", "C1"), ("test", "C2"))


RUN = "run"
"""The figure of the whole run."""


def draw(results: Results, path: Path, name: str = RUN) -> None:
    """Draw the run (losses, predicted against measured change, layer sparsities, the line probe), or a probe by its label.

    Raises:
        SpecError: If the file name is not one of a picture, or there is no such figure.
        ResultsError: If there are no steps to draw, or the file cannot be written.
    """
    _check(path)
    if not results.summary["steps"]:
        raise ResultsError(f"{results.path}: no steps yet, so there is nothing to draw")
    fill = _run if name == RUN else _by_probe(results, name)
    picture(path, lambda figure: fill(results, figure), _title(results))


def picture(path: Path, fill: Callable[[Figure], None], title: str) -> None:
    """Fill a figure, and write it; whatever style the user has set.

    Raises:
        SpecError: If the file name is not one of a picture.
        ResultsError: If the file cannot be written.
    """
    _check(path)
    os.environ["MPLBACKEND"] = "agg"  # a notebook's own may not be installed here
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    # Texts stay texts in vector files.
    settings = {"svg.fonttype": "none", "pdf.fonttype": 42}
    with plt.style.context(["default", settings], after_reset=True):
        figure = plt.figure(layout="constrained", figsize=(11, 4.6))
        try:
            fill(figure)
            figure.suptitle(drawn(title))
            with replacing(Path(os.path.realpath(path))) as temporary, warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for what the font lacks
                figure.savefig(temporary, dpi=150, format=path.suffix[1:].lower())
        except OSError as error:
            raise ResultsError(f"{path}: cannot be written: {error.strerror}") from None
        finally:
            plt.close(figure)


def _check(path: Path) -> None:
    if path.suffix.lower() not in _FORMATS:
        raise SpecError(f"--plot {path}: must end in {', '.join(_FORMATS)}")
    if path.exists() and not path.is_file():
        raise ResultsError(f"{path}: is no regular file; a picture is one")


def _by_probe(results: Results, label: str) -> Callable[[Results, Figure], None]:
    """What draws a probe."""
    from prunekit import PluginManager, Probe

    summaries, manager = results.summary["probes"], PluginManager()
    kinds = {key: results.probe_kind(key) for key in summaries}
    known = set(manager.names("probe"))
    found = {key: manager.get("probe", kind) for key, kind in kinds.items() if kind in known}
    pictures = {key: one for key, one in found.items() if issubclass(one, Probe) and one.has_picture()}
    if label not in pictures:
        accepted = ", ".join([RUN, *pictures])
        what = "has no picture" if label in summaries else "is no probe of this run"
        raise SpecError(f"--figure: {label!r} {what}; accepted: {accepted}")
    if not summaries[label].get("steps", True):
        raise ResultsError(f"{results.path}: probe {label!r} has found nothing yet")

    def fill(results: Results, figure: Figure) -> None:
        try:
            pictures[label].draw(results, label, figure)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ResultsError(
                f"{results.path}: probe {label!r} cannot be drawn from what is there: {type(error).__name__}: {error}"
            ) from error

    return fill


def _title(results: Results) -> str:
    spec = results.summary["spec"]
    return f"{spec['name']}: {spec['model']['name']} on {spec['dataset']['name']}, {spec['prune']['criterion']['name']}"


def _run(results: Results, figure: Figure) -> None:
    """Losses, changes, layers and lines."""
    steps = results.summary["steps"]
    line = results.probe("line", "end") if "end" in results.moments("line") else {}
    count = 3 + len(line)
    columns = 2 if count == 4 else 3
    rows = -(-count // columns)
    figure.set_size_inches(4.6 * columns, 3.6 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    _losses(axes[0], results.summary)
    _changes(axes[1], steps)
    _layers(axes[2], steps)
    for axis, (key, arrays) in zip(axes[3:], line.items(), strict=False):
        _line(axis, key, arrays)
    for axis in axes[count:]:
        axis.set_visible(False)


def _sparsities(axis: Axes, steps: list[Row]) -> list[float]:
    axis.set_xlabel("sparsity (%)")
    axis.grid(alpha=0.3)
    return [100 * s["sparsity"] for s in steps]


def _values(steps: list[Row], key: str) -> list[float]:
    return [float("nan") if s.get(key) is None else s[key] for s in steps]


def _losses(axis: Axes, summary: Row) -> None:
    steps = summary["steps"]
    x = _sparsities(axis, steps)
    for split, colour in _SPLITS:
        y = _values(steps, f"{split}_loss")
        if any(v == v for v in y):
            start = (summary["dense"] or {}).get(f"{split}_loss")
            axis.plot(
                [0, *x], [float("nan") if start is None else start, *y], ".-", color=colour, label=split
            )
            tuned = (summary["finetuned"] or {}).get(f"{split}_loss")
            if tuned is not None:
                axis.plot(x[-1], tuned, "*", color=colour, markersize=11, label=f"{split}, fine-tuned")
    axis.set_ylabel("loss")
    axis.set_title("Loss while pruning")
    axis.legend(fontsize="small")


def _changes(axis: Axes, steps: list[Row]) -> None:
    x = _sparsities(axis, steps)
    measured = _values(steps, "delta_loss")
    predicted = _values(steps, "predicted_delta_loss")
    axis.plot(x, measured, ".-", color="C3", label="measured")
    if any(v == v for v in predicted):
        axis.plot(x, predicted, ".--", color="C4", label="predicted")
    finite = [abs(v) for v in (*measured, *predicted) if v == v and v != 0]
    if finite and max(finite) / min(finite) > 30:
        # Changes span orders of magnitude and both signs.
        axis.set_yscale("symlog", linthresh=max(min(finite), max(finite) * 1e-4))
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set_ylabel("change of the loss in a step")
    axis.set_title("Predicted and measured change")
    axis.legend(fontsize="small")


def _layers(axis: Axes, steps: list[Row]) -> None:
    import matplotlib.pyplot as plt

    x = _sparsities(axis, steps)
    names = list(steps[0]["layers"])
    colours = plt.get_cmap("viridis")
    for i, name in enumerate(names):
        y = [100 * s["layers"][name] for s in steps]
        shade = colours(0.9 * i / max(1, len(names) - 1))
        axis.plot([0, *x], [0, *y], color=shade, linewidth=1.2, label=drawn(name))
    axis.plot([0, 100], [0, 100], ":", color="grey", linewidth=0.8)
    axis.set_ylabel("sparsity of the layer (%)")
    axis.set_title("Layers, first (dark) to last (light)")
    if len(names) <= 8:
        lines = axis.get_lines()[: len(names)]  # by hand: what begins with "_" would be left out
        axis.legend(lines, list(map(drawn, names)), fontsize="x-small")


def _line(axis: Axes, key: str, arrays: Row) -> None:
    first, _, second = drawn(key).replace("finetuned", "fine-tuned").partition("_to_")
    for split, colour in _SPLITS:
        if f"{split}_loss" in arrays:
            axis.plot(arrays["place"], arrays[f"{split}_loss"], ".-", color=colour, label=split)
    axis.set_xlabel(f"0 = {first}, 1 = {second}")
    axis.set_ylabel("loss")
    axis.set_title(f"Along the line from {first} to {second}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
