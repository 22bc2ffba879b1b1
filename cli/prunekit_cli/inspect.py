"""``prunekit inspect``; imports no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

from prunekit_cli import console


def inspect(
    file: Path, as_json: bool, layers: bool, plot: Path | None, figure: str | None, probe: str | None
) -> None:
    """Print a results file as tables or JSON, or draw it."""
    from prunekit.errors import SpecError
    from prunekit.results import open_results

    if figure is not None and plot is None:
        raise SpecError("--figure: says what to draw, and --plot into which file; give both")
    with open_results(file) as results:
        if plot is not None:
            from prunekit_cli.plot import RUN, draw

            draw(results, plot := Path(os.path.expanduser(plot)), figure or RUN)
        if probe is not None:
            results.probe_kind(probe)  # which says so where it is not there
        if as_json:
            print(
                json.dumps(results.summary if probe is None else results.summary["probes"][probe], indent=1)
            )
            return
        from prunekit_cli import overview

        screen = console.stdout()
        for part in overview.overview(results) if probe is None else overview.probe(results, probe):
            screen.print(part)
        if layers:
            for part in overview.layers(results):
                screen.print(part)
        if plot is not None:
            screen.print(f"Drawn into {plot}")
