"""``prunekit sweep``, and ``inspect`` of its folder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.sweeps.table import parts, value, varying
from prunekit.units import duration, readable_bytes
from prunekit_cli import console, signals
from prunekit_cli.console import table

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
    workers: int | None,
    executor: str | None,
    retry: str | None,
    as_json: bool,
    block: Sequence[str],
    code: bool,
    quiet: bool = False,
    shows: bool = True,
) -> bool:
    """Do what is left of a sweep, or list it.

    Args:
        file: The sweep.
        out: Its folder.
        dry_run: Only list the runs.
        workers: At a time.
        executor: What starts them.
        retry: ``failed`` to try again what has failed.
        as_json: Print JSON.
        block: Plugins to leave out.
        code: Whether other code than built-in code may run.
        quiet: This is a worker.
        shows: Whether to print the table in the end.

    Returns:
        Whether all runs are complete; of a worker, that it has ended by itself.
    """
    from prunekit.errors import SpecError
    from prunekit.plugins.host import manager_for
    from prunekit.results.replacing import abandon
    from prunekit.sweeps.folder import Folder
    from prunekit.sweeps.opened import Sweep
    from prunekit.sweeps.plan import load
    from prunekit.sweeps.worker import here

    if retry not in (None, "failed"):
        raise SpecError(f"--retry {retry}: accepted is failed")
    signals.before_the_end(abandon)
    file = Path(os.path.expanduser(file))
    place = Path(os.path.expanduser(out)) if out is not None else file.with_suffix("")
    with console.only_results():
        plan = load(file, manager := manager_for(block, code))
    if dry_run:
        _list(plan, place, as_json)
        return True
    with console.only_results():
        (folder := Folder(place)).begin(plan)
        for one in plan.runs if retry else ():
            folder.forgive(one.key)
        if quiet:  # a worker; the command that started it has looked at everything
            here(plan, folder, manager, lambda one, what: signals.check())
            return True
        counts = folder.counts()
        if counts.get("complete"):
            _refuse_other_data(plan, folder)
        left = len(plan.runs) - counts.get("complete", 0) - counts.get("failed", 0)
        if left:
            _run(plan, file, folder, left, workers, executor, block, code, manager)
    if not shows:
        return True
    found = Sweep(place)
    if as_json:
        console.print_json(found.rows())
    else:
        show(found)
    return found.counts.get("complete", 0) == len([r for r in found.runs if r.status != "foreign"])


def _run(
    plan: Plan,
    file: Path,
    folder: Folder,
    left: int,
    workers: int | None,
    named: str | None,
    block: Sequence[str],
    code: bool,
    manager: PluginManager,
) -> None:
    """Choose an executor, and start the workers."""
    from prunekit.executor import Job
    from prunekit.sweeps.machine import cores, gpus
    from prunekit.sweeps.plan import executor_of
    from prunekit.sweeps.supervise import supervise
    from prunekit.sweeps.worker import here, worker

    executor = plan.executor
    if named is not None and (executor is None or executor.name != named):
        executor = executor_of(named, manager)
    cards = gpus()
    if workers is None:
        alone = executor is not None and executor.name == "inline"
        workers = 1 if alone else max(1, min(left, len(cards) or cores() // plan.threads))
    executor = executor or executor_of("process" if workers > 1 else "inline", manager)
    place, target = file.absolute(), folder.path.absolute()
    again = [str(place), "--out", str(target), "--quiet"]
    again += [word for name in block for word in ("--block", name)] + ([] if code else ["--no-code"])
    progress = _Progress(plan, folder, len(plan.runs) - left)
    inline = partial(here, plan, folder, manager, progress.tell)
    job = Job(
        inline if executor.name == "inline" else partial(worker, place, target, tuple(block), code),
        (sys.executable, "-m", "prunekit_cli", "sweep", *again),
        workers,
        plan.threads,
        target,
        tuple(cards),
    )
    progress.begin(f"{executor.name}, {workers} worker{'s' if workers > 1 else ''}")
    supervise(executor, job, progress.look)
    progress.end()


def _refuse_other_data(plan: Plan, folder: Folder) -> None:
    """Runs that are complete, of files that have changed since, are not these runs."""
    from prunekit.errors import ResultsError
    from prunekit.sweeps.work import of_other_data

    stale = of_other_data(plan, folder)
    if stale:
        raise ResultsError(
            f"{folder.path}: {len(stale)} run{'s' if len(stale) > 1 else ''} ({', '.join(stale[:3])}"
            f"{', …' if len(stale) > 3 else ''}) read files that have changed since; give another --out, or delete those "
            "results"
        )


def inspect(folder: Path, as_json: bool, plot: Path | None, columns: int | None) -> None:
    """Print a sweep's table or JSON, or draw it."""
    from prunekit.errors import SpecError
    from prunekit.sweeps.opened import Sweep

    if columns is not None and plot is None:
        raise SpecError("--columns: says how wide the picture is, and --plot where it goes; give both")
    found = Sweep(folder)
    if plot is not None:
        found.plot(plot, columns)
    if as_json:
        console.print_json(found.rows())
        return
    show(found)
    if plot is not None:
        console.stdout().print(f"Drawn into {plot}")


def show(found: Sweep) -> None:
    """Print a sweep's table."""
    screen = console.stdout()
    for part in parts(found.path, found.runs, found.protocols):
        if isinstance(part, str):
            screen.print(part)
        else:
            screen.print(table(part.title, part.columns, part.rows, left=part.left))


def _list(plan: Plan, place: Path, as_json: bool) -> None:
    from prunekit.sweeps.estimate import estimate
    from prunekit.sweeps.folder import Folder

    there = {run.key: run for run in Folder(place).found()} if (place / "sweep.json").exists() else {}
    status = {one.key: there[one.key].status if one.key in there else "missing" for one in plan.runs}
    if as_json:
        console.print_json(
            [{"key": one.key, "status": status[one.key], "parameters": one.parameters} for one in plan.runs]
        )
        return
    names = varying(one.parameters for one in plan.runs)
    rows = [
        [one.key, status[one.key], *(value(one.parameters.get(n)) for n in names)]
        for one in plan.runs[:_SHOWN]
    ]
    screen = console.stdout()
    more = f" (the first {_SHOWN})" if len(plan.runs) > _SHOWN else ""
    screen.print(table(f"{len(plan.runs)} runs{more}", ["run", "status", *names], rows, left=2 + len(names)))
    waiting = [one for one in plan.runs if status[one.key] not in ("complete", "failed")]
    cost = estimate(waiting, there.values())
    if cost is not None and waiting:
        seconds, memory, of = cost
        screen.print(
            f"{len(waiting)} are left: about {duration(seconds)} of one worker, and {readable_bytes(memory)} of memory for "
            f"each, estimated from the {of} that are done"
        )


class _Progress:
    """Lines on stderr: what was done, and how long the rest will take at that pace."""

    def __init__(self, plan: Plan, folder: Folder, done: int) -> None:
        self._plan, self._folder = plan, folder
        self._names = varying(one.parameters for one in plan.runs)
        self._started = self._last = time.monotonic()
        self._before = self._done = done

    def begin(self, text: str) -> None:
        """Say who does the work."""
        self._print(text)

    def end(self) -> None:
        """Say how it stands."""
        self._last = 0.0
        self.look()

    def tell(self, one: Planned, what: str) -> None:
        """A run has been started, is complete, or has failed."""
        signals.check()
        if what != "started":
            self._done += 1
            words = ", ".join(f"{name}={value(one.parameters[name])}" for name in self._names)
            self._print(f"{one.key[:8]} {what}  {words}")

    def look(self) -> None:
        """Count what workers have done, now and then."""
        signals.check()
        now = time.monotonic()
        if now - self._last < _EVERY:
            return
        self._last = now
        counts = self._folder.counts()
        self._done = counts.get("complete", 0) + counts.get("failed", 0)
        self._print(", ".join(f"{count} {status}" for status, count in counts.items() if status != "foreign"))

    def _print(self, text: str) -> None:
        total, spent = len(self._plan.runs), time.monotonic() - self._started
        made = self._done - self._before
        left = (
            f"  {duration(spent / made * (total - self._done))} left" if made and self._done < total else ""
        )
        console.stderr().print(f"sweep {self._done}/{total}  {text}{left}")
