"""``prunekit sweep``, and ``inspect`` of its folder."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.reports.words import number, percent
from prunekit_cli import console, signals
from prunekit_cli.console import table
from prunekit_cli.values import shown

if TYPE_CHECKING:
    from prunekit.plugins.host import PluginManager
    from prunekit.sweeps.folder import Folder
    from prunekit.sweeps.opened import Sweep
    from prunekit.sweeps.plan import Plan, Planned

_SHOWN = 60
_EVERY = 5.0  # seconds between two lines of progress


def sweep(
    file: Path,
    out: Path | None,
    dry_run: bool,
    workers: int,
    threads: int | None,
    retry: str | None,
    as_json: bool,
    block: Sequence[str],
    code: bool,
    quiet: bool,
) -> bool:
    """Do what is left of a sweep, or list it.

    Returns:
        Whether all runs are complete.
    """
    from prunekit.errors import SpecError
    from prunekit.plugins.host import manager_for
    from prunekit.results.replacing import abandon
    from prunekit.sweeps.folder import Folder
    from prunekit.sweeps.opened import Sweep
    from prunekit.sweeps.plan import load

    if retry not in (None, "failed"):
        raise SpecError(f"--retry {retry}: accepted is failed")
    signals.before_the_end(abandon)
    with console.only_results():
        plan = load(Path(os.path.expanduser(file)), manager := manager_for(block, code))
    place = Path(os.path.expanduser(out)) if out is not None else file.with_suffix("")
    if dry_run:
        _list(plan, place, as_json)
        return True
    folder = Folder(place)
    folder.begin(plan)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers == 1 and threads is None:
        _alone(plan, folder, manager, retry is not None, quiet)
    else:
        from prunekit.sweeps.processes import command_of
        from prunekit.sweeps.processes import workers as several

        if retry:
            for one in plan.runs:
                folder.forgive(one.key)
        again = [str(file), "--out", str(place), "--quiet", *(f for b in block for f in ("--block", b))]
        again += [] if code else ["--no-code"]
        progress = _Progress(plan, folder)
        several(command_of(["sweep", *again]), workers, threads or max(1, cores // workers), progress.look)
    if quiet:
        return True
    found = Sweep(place)
    if as_json:
        console.print_json(found.rows())
    else:
        show(found)
    return found.counts.get("complete", 0) == len([r for r in found.runs if r.status != "foreign"])


def show(found: Sweep) -> None:
    """Print a sweep's table."""
    screen = console.stdout()
    counts = ", ".join(f"{count} {status}" for status, count in found.counts.items())
    screen.print(f"{found.path}: {counts}")
    if found.protocols > 1:
        screen.print(f"made under {found.protocols} protocols, so not all rows compare; see prunekit compare")
    runs = [run for run in found.runs if run.status != "foreign"]
    names = list(dict.fromkeys(name for run in runs for name in run.parameters))
    rows = [
        [
            *(run.key[:8], run.status, *(shown(run.parameters.get(name)) for name in names)),
            *(percent(run.row.get("sparsity"), 2), number(run.row.get("train_delta_loss"))),
            *(percent(run.row.get("pruned_test_error")), percent(run.row.get("finetuned_test_error"))),
        ]
        for run in runs[:_SHOWN]
    ]
    columns = ["run", "status", *names, "sparsity", "train Δloss", "test error", "fine-tuned"]
    more = f" (the first {_SHOWN} of {len(runs)}; all with --json)" if len(runs) > _SHOWN else ""
    screen.print(table(f"Runs{more}", columns, rows, left=2 + len(names)))
    for run in runs:
        if run.failure:
            screen.print(f"{run.key} failed: {run.failure.strip().splitlines()[-1]}")


def _list(plan: Plan, place: Path, as_json: bool) -> None:
    from prunekit.sweeps.folder import Folder

    folder = Folder(place)
    there = {run.key: run for run in folder.found()} if (place / "sweep.json").exists() else {}
    status = {one.key: there[one.key].status if one.key in there else "missing" for one in plan.runs}
    if as_json:
        console.print_json(
            [{"key": one.key, "status": status[one.key], "parameters": one.parameters} for one in plan.runs]
        )
        return
    names = list(dict.fromkeys(name for one in plan.runs for name in one.parameters))
    rows = [
        [one.key, status[one.key], *(shown(one.parameters.get(n)) for n in names)]
        for one in plan.runs[:_SHOWN]
    ]
    screen = console.stdout()
    more = f" (the first {_SHOWN})" if len(plan.runs) > _SHOWN else ""
    screen.print(table(f"{len(plan.runs)} runs{more}", ["run", "status", *names], rows, left=2 + len(names)))
    seconds = [
        run.row["seconds"] for run in there.values() if isinstance(run.row.get("seconds"), int | float)
    ]
    left = sum(s != "complete" for s in status.values())
    if seconds and left:
        mean = sum(seconds) / len(seconds)
        screen.print(
            f"{left} are left: about {left * mean:.0f} s of pruning, by the {len(seconds)} that are done"
        )


def _alone(plan: Plan, folder: Folder, manager: PluginManager, retry: bool, quiet: bool) -> None:
    from prunekit.sweeps.work import work

    progress = _Progress(plan, folder)

    def told(one: Planned, what: str) -> None:
        signals.check()
        if not quiet:
            progress.tell(one, what)

    with console.only_results():
        work(plan, folder, manager, told, retry=retry)


class _Progress:
    """Lines on stderr: what was done, and how long the rest will take at that pace."""

    def __init__(self, plan: Plan, folder: Folder) -> None:
        self._plan, self._folder = plan, folder
        self._started, self._done, self._last = time.monotonic(), 0, 0.0

    def tell(self, one: Planned, what: str) -> None:
        """A run has been started, is complete, or has failed."""
        if what != "started":
            self._done += 1
            words = ", ".join(f"{name}={shown(value)}" for name, value in one.parameters.items())
            self._print(f"{one.key[:8]} {what}  {words}")

    def look(self) -> None:
        """Count what workers have done, now and then."""
        signals.check()
        now = time.monotonic()
        if now - self._last < _EVERY:
            return
        self._last = now
        counts: dict[str, int] = {}
        for run in self._folder.found():
            counts[run.status] = counts.get(run.status, 0) + 1
        self._done = counts.get("complete", 0) + counts.get("failed", 0)
        self._print(", ".join(f"{count} {status}" for status, count in counts.items() if status != "foreign"))

    def _print(self, text: str) -> None:
        total, spent = len(self._plan.runs), time.monotonic() - self._started
        left = f"  {spent / self._done * (total - self._done):.0f} s left" if self._done else ""
        console.stderr().print(f"sweep {self._done}/{total}  {text}{left}")
