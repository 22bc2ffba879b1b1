"""``prunekit run``: a spec is run, followed on stderr, and its overview printed."""

from __future__ import annotations

import sys
from pathlib import Path

from prunekit_cli import console, signals
from prunekit_cli.overview import overview
from prunekit_cli.progress import PlainProgress, RichProgress


def run(
    spec: Path,
    out: Path | None,
    settings: list[str],
    device: str | None,
    resume: bool,
    overwrite: bool,
    block: list[str],
    code: bool = True,
) -> None:
    """Run a spec, follow it on stderr, and print the result's overview on stdout."""
    import prunekit
    from prunekit.distributed import speaks
    from prunekit.errors import SpecError
    from prunekit.results.replacing import abandon

    signals.before_the_end(abandon)
    overrides = dict(console.overrides(settings))
    if device is not None:
        if "device" in overrides:
            raise SpecError("--device and --set device=… are given both; one is enough")
        overrides["device"] = device
    screen = console.stderr(quiet=not speaks())
    listener = RichProgress(screen) if sys.stderr.isatty() else PlainProgress(screen)
    with console.only_results(), listener:
        results = prunekit.run(
            spec,
            out,
            overrides,
            resume=resume,
            overwrite=overwrite,
            block=block,
            code=code,
            listener=listener,
        )
    if not speaks():
        results.close()
        return
    with results:
        for part in overview(results):
            console.stdout().print(part)
        console.stdout().print(
            f"Results in {results.path}; look closer with: prunekit inspect {results.path}"
        )
