"""``prunekit compare``: runs side by side; imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from prunekit.visible import visible_name
from prunekit_cli import console
from prunekit_cli.console import number, percent, table
from prunekit_cli.formats import Format, printed

if TYPE_CHECKING:
    from prunekit.records import Row
    from prunekit.reports.compare import Comparison
    from prunekit.reports.overlap import Overlap

_SHOWN_LAYERS = 12
_PARTS = {
    "linear": "linear",
    "diagonal": "diagonal",
    "off_diagonal": "off-diagonal",
    "ggn_to_hessian": "GGN to Hessian",
    "higher_order": "higher order",
}


def compare(
    files: Sequence[Path],
    as_json: bool,
    plot: Path | None,
    anyway: bool,
    form: Format | None = None,
    columns: int | None = None,
) -> None:
    """Print some results files side by side, as tables or JSON, or draw them.

    Raises:
        ResultsError: If one cannot be read, or they were made under unlike protocols.
    """
    from prunekit.errors import SpecError
    from prunekit.reports.compare import compare as compared

    if form is not None and as_json:
        raise SpecError("--format: is for tables, and --json prints none; give one of them")
    if columns is not None and plot is None:
        raise SpecError("--columns: says how wide the picture is, and --plot where it goes; give both")
    comparison = compared(files, anyway)
    if plot is not None:
        from prunekit.reports.compare_figure import fill
        from prunekit.reports.picture import picture

        plot = Path(os.path.expanduser(plot))
        picture(plot, lambda figure: fill(comparison, figure), f"{len(comparison.runs)} runs", columns)
    if as_json:
        console.print_json(comparison.summary)
        return
    if form is not None:
        console.print_text(printed(parts(comparison), form))
        return
    screen = console.stdout()
    for part in parts(comparison):
        screen.print(part)
    if plot is not None:
        screen.print(f"Drawn into {plot}")


def parts(comparison: Comparison) -> Iterator[RenderableType]:
    """Tables, the most telling first."""
    runs = comparison.runs
    names = [row["name"] for row in runs]
    if comparison.unlike:
        yield "Not made under one protocol, so the numbers do not compare:"
        yield table(None, ["value", *names], list(_values(comparison.unlike)), left=1 + len(names))
    if comparison.differences:
        yield table(
            "What differs", ["value", *names], list(_values(comparison.differences)), left=1 + len(names)
        )
    yield table("Runs", ["run", "steps", "sparsity", *_COLUMNS], [_row(row) for row in runs])
    budgets = [
        [row["name"], *(number(row["budget"][part]) for part in _PARTS)] for row in runs if row["budget"]
    ]
    if budgets:
        yield table("What the measured changes are made of", ["run", *_PARTS.values()], budgets)
    if comparison.overlaps:
        yield table(
            "Weights kept by both, of those kept by one at least",
            ["runs", "overlap", "by chance"],
            [[f"{names[a]}, {names[b]}", *_shares(whole)] for a, b, whole, _ in comparison.overlaps],
        )
    if len(comparison.overlaps) == 1:
        ((_, _, _, layers),) = comparison.overlaps
        rows = [[name, *_shares(one)] for name, one in layers.items()]
        more = f" (the first {_SHOWN_LAYERS}; all with --json)" if len(rows) > _SHOWN_LAYERS else ""
        yield table(f"… layer by layer{more}", ["tensor", "overlap", "by chance"], rows[:_SHOWN_LAYERS])


_COLUMNS = (
    *("predicted Δloss", "measured Δloss", "train Δloss", "test error", "fine-tuned"),
    *("slope", "R²", "seconds"),
)


def _row(row: Row) -> list[str]:
    return [
        row["name"] if row["status"] == "complete" else f"{row['name']} ({row['status']})",
        f"{row['steps']:,}",
        percent(row["sparsity"], 3),
        number(row["predicted_delta_loss"]),
        number(row["delta_loss"]),
        number(row["train_delta_loss"]),
        _last(row["pruned"]),
        _last(row["finetuned"]),
        *(_plain((row["calibration"] or {}).get(key)) for key in ("slope", "r_squared")),
        number(row["seconds"], 2),
    ]


def _last(metrics: Row | None) -> str:
    """The error on test data, or of a regression the loss."""
    if not metrics:
        return "–"
    return percent(metrics["test_error"]) if "test_error" in metrics else number(metrics.get("test_loss"))


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _shares(overlap: Overlap) -> list[str]:
    return [percent(overlap.jaccard, 1), percent(overlap.chance, 1)]


def _values(differences: Any) -> Iterator[list[str]]:
    """Rows of values that differ; of components with other names not the options that not all of them have."""
    for path, values in differences.items():
        if f"{path.rpartition('.')[0]}.name" in differences and None in values:
            continue
        yield [path, *("–" if value is None else visible_name(str(value)) for value in values)]
