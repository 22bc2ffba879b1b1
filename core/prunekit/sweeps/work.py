"""A worker: takes one run after another that nobody works on, until none is left."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from prunekit.errors import PrunekitError, ResultsError
from prunekit.observing.listener import Listener
from prunekit.plugins.host import PluginManager
from prunekit.results.claim import written
from prunekit.runs.start import start
from prunekit.sweeps.dense import has_one, trained
from prunekit.sweeps.dense import key as dense_key
from prunekit.sweeps.folder import Folder
from prunekit.sweeps.plan import Plan, Planned

_PERIOD = 0.5
"""Seconds between two looks at runs that others work on."""

Told = Callable[[Planned, str], None]
"""Called with a run and what became of it: ``started``, ``complete``, ``failed``."""


def work(
    plan: Plan,
    folder: Folder,
    manager: PluginManager,
    told: Told,
    listener: Listener | None = None,
    retry: bool = False,
) -> None:
    """Do what is left of a sweep, and what others leave who die meanwhile.

    Args:
        plan: The runs.
        folder: Where they lie.
        manager: What plugins there are.
        told: Is told what happens.
        listener: Of each run's progress.
        retry: Whether to try again what has failed.
    """
    if retry:
        for one in plan.runs:
            folder.forgive(one.key)
    # By the index: opening each file of a sweep that is nearly done would take longer than what is left of it.
    complete = {run.key for run in folder.found() if run.status == "complete"}
    waiting, alike = [one for one in plan.runs if one.key not in complete], _alike(plan, folder)
    while waiting:
        left = [one for one in waiting if not _done(one, folder, manager, told, listener, alike)]
        if len(left) == len(waiting):
            time.sleep(_PERIOD)  # others are at work
        waiting = left


def _alike(plan: Plan, folder: Folder) -> dict[str, list[Path]]:
    """The files of each run, by its key, that begin with the same dense network."""
    dense = {one.key: dense_key(one.spec) for one in plan.runs}
    groups: dict[str | None, list[Path]] = {}
    for one in plan.runs:
        groups.setdefault(dense[one.key], []).append(folder.output(one.key))
    return {one.key: [] if dense[one.key] is None else groups[dense[one.key]] for one in plan.runs}


def _done(
    one: Planned,
    folder: Folder,
    manager: PluginManager,
    told: Told,
    listener: Listener | None,
    alike: Mapping[str, Sequence[Path]],
) -> bool:
    """Do a run, unless it is done, has failed, or somebody else is doing it; whether nothing is left to do of it."""
    out = folder.output(one.key)
    if folder.failure(one.key) or _complete(folder, one):
        return True
    others = [file for file in alike[one.key] if file != out]
    if written(out) or (not out.exists() and _being_trained(others)):
        return False
    told(one, "started")
    try:
        start(one.spec, out, manager, listener, resume=True, source=partial(trained, others))
    except Exception as error:  # of a run; the others go on
        if written(out):  # another was faster, or has taken it over: it is no failure of the run
            return False
        folder.fail(one.key, _text(error))
        told(one, "failed")
    else:
        told(one, "complete")
    return True


def _being_trained(files: Sequence[Path]) -> bool:
    """Whether somebody is training the network that a run begins with, and nobody has done so yet."""
    return not any(map(has_one, files)) and any(map(written, files))


def _complete(folder: Folder, one: Planned) -> bool:
    from prunekit.results import open_results

    out = folder.output(one.key)
    with suppress(ResultsError):
        if out.exists():
            with open_results(out) as results:
                return bool(results.summary["status"] == "complete")
    return False


def _text(error: Exception) -> str:
    if isinstance(error, PrunekitError):
        return f"{type(error).__name__}: {error}\n"
    return "".join(traceback.format_exception(error))
