"""A worker: takes one run after another that nobody works on, until none is left."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from prunekit.errors import ResultsError
from prunekit.observing.listener import Listener
from prunekit.plugins.host import PluginManager
from prunekit.results import open_results
from prunekit.results.claim import written
from prunekit.runs.identity import inputs
from prunekit.runs.shared import Shared
from prunekit.runs.start import start
from prunekit.runs.state import state_path
from prunekit.sweeps.dense import has_one, trained
from prunekit.sweeps.dense import key as dense_key
from prunekit.sweeps.folder import TRIES, Folder, digests
from prunekit.sweeps.plan import Plan, Planned, Told

_PERIOD = 0.5
"""Seconds between two looks at runs that others work on."""

_STUCK = (
    f"RunError: its worker was killed {TRIES} times at the same place of this run (out of memory?); --retry failed "
    "tries again\n"
)


def work(
    plan: Plan,
    folder: Folder,
    manager: PluginManager,
    told: Told,
    listener: Listener | None = None,
) -> None:
    """Do what is left of a sweep, and what others leave who die meanwhile.

    Args:
        plan: The runs.
        folder: Where they lie.
        manager: What plugins there are.
        told: Is told what happens.
        listener: Of each run's progress.
    """
    # By the index: opening each file of a sweep that is nearly done would take longer than what is left of it.
    complete = {run.key for run in folder.found() if run.status == "complete"}
    waiting = [one for one in plan.runs if one.key not in complete]
    alike, shared = _alike(plan, folder), Shared()
    while waiting:
        left = [one for one in waiting if not _done(one, folder, manager, told, listener, alike, shared)]
        if len(left) == len(waiting):
            time.sleep(_PERIOD)  # others are at work
        waiting = left


def of_other_data(plan: Plan, folder: Folder) -> list[str]:
    """Keys of runs that are complete and have read other files than there are now."""
    specs = {one.key: one.spec for one in plan.runs}
    complete = [run for run in folder.found() if run.status == "complete" and run.key in specs]
    return [run.key for run in complete if run.row.get("inputs") != digests(inputs(specs[run.key]))]


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
    shared: Shared,
) -> bool:
    """Do a run, unless it is done, has failed, or somebody else is doing it; whether nothing is left to do of it."""
    out = folder.output(one.key)
    if folder.failure(one.key) or _complete(folder, one):
        return True
    others = [file for file in alike[one.key] if file != out]
    if written(out) or (not out.exists() and _being_trained(others)):
        return False
    if not folder.starting(one.key, _place(out)):
        folder.fail(one.key, _STUCK)
        folder.over(one.key)
        told(one, "failed")
        return True
    told(one, "started")
    try:
        start(one.spec, out, manager, listener, resume=True, source=partial(trained, others), shared=shared)
    except Exception as error:  # of a run; the others go on
        shared.clear()
        if written(out):  # another was faster, or has taken it over: it is no failure of the run
            return False
        folder.fail(one.key, "".join(traceback.format_exception(error)))
        told(one, "failed")
    except BaseException:  # an interruption, which is no death
        folder.over(one.key)
        raise
    else:
        folder.note(one.key)
        told(one, "complete")
    folder.over(one.key)
    return True


def _place(out: Path) -> str:
    """How far a run is; what is only written again does not count."""
    state = state_path(out)
    place = [state.stat().st_size if state.exists() else 0]
    with suppress(ResultsError), open_results(out) as results:
        summary = results.summary
        place += [len(summary[name] or ()) for name in ("steps", "attempts", "probes")]
        place += [len(results.history(phase).get("epoch", ())) for phase in ("dense", "finetuned")]
    return json.dumps(place)


def _being_trained(files: Sequence[Path]) -> bool:
    """Whether somebody is training the network that a run begins with, and nobody has done so yet."""
    return not any(map(has_one, files)) and any(map(written, files))


def _complete(folder: Folder, one: Planned) -> bool:
    out = folder.output(one.key)
    with suppress(ResultsError):
        if out.exists():
            with open_results(out) as results:
                return bool(results.summary["status"] == "complete")
    return False
