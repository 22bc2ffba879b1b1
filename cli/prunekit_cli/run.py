"""``prunekit run``: a spec is run, followed on stderr, and its overview printed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit_cli import console, signals
from prunekit_cli.overview import overview
from prunekit_cli.progress import PlainProgress, RichProgress

if TYPE_CHECKING:
    from prunekit.results import Results


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
        console.stdout().print(_next(results))


def _next(results: Results) -> str:
    """What deserves a look, and how to get it."""
    from prunekit.reports.verdict import looks

    path = results.path
    text = f"Results in {path}; on one page: prunekit inspect {path} --html {path.with_suffix('.html').name}"
    shown = [look for look in looks(results.summary) if look.figure]
    if not shown:
        return text
    first = shown[0].text[:1].upper() + shown[0].text[1:]
    drawing = f"prunekit inspect {path} --plot {path.with_suffix('.png').name} --figure {shown[0].figure}"
    return f"{first}: {drawing}\n{text}"
