"""``prunekit compare``: runs side by side; imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType

from prunekit.reports.compare_tables import tables
from prunekit_cli import console
from prunekit_cli.console import table
from prunekit_cli.formats import Format, printed

if TYPE_CHECKING:
    from prunekit.reports.compare import Comparison


def _of_sweep(file: Path) -> list[Path]:
    """A results file itself; of a sweep's folder all complete runs."""
    from prunekit.errors import ResultsError
    from prunekit.sweeps.opened import Sweep

    if not file.is_dir():
        return [file]
    complete = Sweep(file).files()
    if not complete:
        raise ResultsError(f"{file}: no run of the sweep is complete")
    return complete


def compare(
    files: Sequence[Path],
    as_json: bool,
    plot: Path | None,
    anyway: bool,
    form: Format | None = None,
    columns: int | None = None,
    page: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Print some results files side by side, as tables or JSON, or draw them, or make a page of them.

    Raises:
        ResultsError: If one cannot be read, or they were made under unlike protocols.
    """
    from prunekit.errors import SpecError
    from prunekit.reports.compare import compare as compared
    from prunekit.reports.page.target import check_target, write

    if form is not None and as_json:
        raise SpecError("--format: is for tables, and --json prints none; give one of them")
    if columns is not None and plot is None:
        raise SpecError("--columns: says how wide the picture is, and --plot where it goes; give both")
    page = None if page is None else check_target(Path(os.path.expanduser(page)), overwrite)
    comparison = compared([one for file in files for one in _of_sweep(file)], anyway)
    if plot is not None:
        from prunekit.reports.compare_figure import fill
        from prunekit.reports.picture import picture

        plot = Path(os.path.expanduser(plot))
        picture(plot, lambda figure: fill(comparison, figure), f"{len(comparison.runs)} runs", columns)
    if page is not None:
        from prunekit.reports.page.comparison import of_comparison

        write(page, of_comparison(comparison))
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
    if page is not None:
        screen.print(f"Page in {page}")


def parts(comparison: Comparison) -> Iterator[RenderableType]:
    """Its tables."""
    for one in tables(comparison):
        yield table(one.title, one.columns, one.rows, left=one.left, less=one.less)
