"""``prunekit inspect``; imports no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

from prunekit_cli import console


def inspect(file: Path, as_json: bool, layers: bool, plot: Path | None) -> None:
    """Print a results file as tables or JSON, or draw it."""
    from prunekit.results import open_results

    with open_results(file) as results:
        if plot is not None:
            from prunekit_cli.plot import draw

            draw(results, plot := Path(os.path.expanduser(plot)))
        if as_json:
            print(json.dumps(results.summary, indent=1))
            return
        from prunekit_cli import overview

        screen = console.stdout()
        for part in overview.overview(results):
            screen.print(part)
        if layers:
            for part in overview.layers(results):
                screen.print(part)
        if plot is not None:
            screen.print(f"Drawn into {plot}")
