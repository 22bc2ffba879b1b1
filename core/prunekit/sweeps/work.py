"""A worker: takes one run after another that nobody works on, until none is left."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import suppress

from prunekit.errors import PrunekitError, ResultsError
from prunekit.observing.listener import Listener
from prunekit.plugins.host import PluginManager
from prunekit.results.claim import written
from prunekit.runs.start import start
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
    waiting = list(plan.runs)
    while waiting:
        left = [one for one in waiting if not _done(one, folder, manager, told, listener)]
        if len(left) == len(waiting):
            time.sleep(_PERIOD)  # others are at work
        waiting = left


def _done(
    one: Planned, folder: Folder, manager: PluginManager, told: Told, listener: Listener | None
) -> bool:
    """Do a run, unless it is done, has failed, or somebody else is doing it; whether nothing is left to do of it."""
    out = folder.output(one.key)
    if folder.failure(one.key) or _complete(folder, one):
        return True
    if written(out):
        return False
    told(one, "started")
    try:
        start(one.spec, out, manager, listener, resume=True)
    except ResultsError as error:
        if written(out):  # another was faster
            return False
        folder.fail(one.key, _text(error))
        told(one, "failed")
    except Exception as error:  # of a run; the others go on
        folder.fail(one.key, _text(error))
        told(one, "failed")
    else:
        told(one, "complete")
    return True


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
