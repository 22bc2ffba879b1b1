"""``prunekit inspect``; imports no torch."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit_cli import console
from prunekit_cli.formats import Format, printed

if TYPE_CHECKING:
    from prunekit.results import Results


def inspect(
    file: Path,
    as_json: bool,
    layers: bool,
    plot: Path | None,
    figure: str | None = None,
    probe: str | None = None,
    verify: bool = False,
    form: Format | None = None,
    follow: bool = False,
    columns: int | None = None,
    page: Path | None = None,
    overwrite: bool = False,
) -> bool:
    """Print a results file as tables or JSON, or draw it, or say whether it is whole.

    Returns:
        Whether all is well: a run that is followed has not failed.
    """
    import prunekit
    from prunekit.errors import SpecError

    if file.is_dir():
        from prunekit_cli.sweep import inspect as of_sweep

        other = {"--layers": layers, "--figure": figure, "--probe": probe, "--verify": verify, "--html": page}
        given = [name for name, value in {**other, "--follow": follow, "--format": form}.items() if value]
        if given:
            raise SpecError(
                f"{file}: is a folder, perhaps of a sweep; {', '.join(given)}: is for a results file"
            )
        of_sweep(file, as_json, plot, columns)
        return True
    if form is not None and as_json:
        raise SpecError("--format: is for tables, and --json prints none; give one of them")
    if follow:
        from prunekit_cli.follow import follow as followed

        followed(file, console.stdout())
    if figure is not None and plot is None:
        raise SpecError("--figure: says what to draw, and --plot into which file; give both")
    if columns is not None and plot is None:
        raise SpecError("--columns: says how wide the picture is, and --plot where it goes; give both")
    with prunekit.open(file) as results:
        if verify:
            _verify(results, as_json)
            return True
        if plot is not None:
            results.plot(plot := Path(os.path.expanduser(plot)), figure or "run", columns)
        if page is not None:
            results.to_html(page, overwrite)
        if probe is not None:
            results.probe_kind(probe)  # which says so where it is not there
        if as_json:
            console.print_json(results.summary if probe is None else results.summary["probes"][probe])
            return True
        from prunekit_cli import overview

        screen, everything = console.stdout(), form is not None
        parts = list(
            overview.overview(results, everything) if probe is None else overview.probe(results, probe)
        )
        if layers:
            parts += overview.layers(results)
        if form is not None:
            console.print_text(printed(parts, form))
            return True
        for part in parts:
            screen.print(part)
        if plot is not None:
            screen.print(f"Drawn into {plot}")
        if page is not None:
            screen.print(f"Page in {page}")
        return not follow or results.summary["status"] == "complete"


def _verify(results: Results, as_json: bool) -> None:
    """Read everything, the state of an unfinished run beside it too; what is damaged ends with exit code 2."""
    from prunekit.errors import ResultsError
    from prunekit.foreign import damage_of_archive
    from prunekit.units import readable_bytes

    whole = results.whole()
    state = results.path.with_name(results.path.name + ".state")
    wrong = damage_of_archive(state) if state.is_file() else ""
    if wrong:
        raise ResultsError(f"{state}: damaged: {wrong}")
    if as_json:
        console.print_json({"whole": True, **asdict(whole), "state": state.is_file()})
        return
    how = "all with checksums" if whole.checksums else "without checksums, as format 1 has none"
    text = f"{results.path}: whole: {whole.arrays} arrays, {readable_bytes(whole.bytes)}, {how}"
    console.stdout().print(text + ("; so is its state" if state.is_file() else ""))
