"""``prunekit prune``: from one folder into another, block by block."""

from __future__ import annotations

import time
from pathlib import Path

from prunekit_cli import console


def prune(
    spec: Path,
    out: Path,
    settings: list[str],
    dry_run: bool,
    resume: bool,
    overwrite: bool,
    block: list[str],
    code: bool = True,
) -> None:
    """Say what it will take; prune, a line for each block on stderr; and say what has become of it."""
    import prunekit
    from prunekit.plugins.host import manager_for
    from prunekit.reports.words import percent
    from prunekit.runs.folders import expected
    from prunekit.spec import load
    from prunekit.units import readable_bytes

    overrides = dict(console.overrides(settings))
    screen = console.stderr()
    with console.only_results():
        manager = manager_for(block, code)
        cost = expected(load(spec, overrides, manager), manager)
    about = "more than" if cost.unknown else "about"
    text = (
        f"{cost.weights:,} prunable weights in {cost.blocks} blocks: {about} {_time(cost.seconds)} on this machine, "
        f"{readable_bytes(cost.memory)} of memory, {readable_bytes(cost.disk)} on disk"
    )
    if cost.unknown:
        text += f"; what criterion {cost.unknown!r} takes beside its passes is not known beforehand"
    if dry_run:
        console.stdout().print(text)
        return
    screen.print(text)
    began = time.monotonic()

    def told(name: str, done: int, total: int) -> None:
        passed = time.monotonic() - began
        left = f", about {_time(passed / done * (total - done))} left" if done < total else ""
        screen.print(f"{name} ({done} of {total}) after {_time(passed)}{left}", markup=False)

    with console.only_results():
        report = prunekit.prune_folder(
            spec, out, overrides, resume=resume, overwrite=overwrite, block=block, code=code, told=told
        )
    console.stdout().print(
        f"{report.out}: {percent(report.sparsity)} of {report.prunable:,} prunable weights are zero, after "
        f"{_time(report.seconds)}; load it with from_pretrained",
        markup=False,
    )


def _time(seconds: float) -> str:
    """In seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
