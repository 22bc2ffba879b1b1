"""What may lie at a run's output, and whether the run goes on from there."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from prunekit.errors import ResultsError, SpecError
from prunekit.records import Row
from prunekit.results import check_version, open_results, ours
from prunekit.results.replacing import SUFFIX as TEMPORARY_SUFFIX
from prunekit.results.replacing import sweep
from prunekit.runs.state import SUFFIX as STATE_SUFFIX
from prunekit.runs.state import State, state_path
from prunekit.spec.resolve import Spec

_NAME_MAX = 255
"""Bytes that the file systems in use allow in a name."""


def check_place(spec: Spec, out: Path, resume: bool, overwrite: bool) -> None:
    """Refuse what cannot be an output, before it is claimed or anything is loaded.

    Raises:
        SpecError: If no recorder writes the output, or two flags contradict each other.
        ResultsError: If the output cannot be written.
    """
    if not any(part.cls.name == "hdf5" for part in spec.listed("recorders")):
        raise SpecError("recorders: the list must hold hdf5, which writes the results file")
    if resume and overwrite:
        raise SpecError("--resume and --overwrite contradict each other")
    if "\0" in str(out):
        raise ResultsError(f"{str(out)!r}: a file name cannot contain NUL")
    try:
        _check_file(spec, out)
    except ResultsError:
        raise
    except OSError as error:
        raise ResultsError(f"{out}: cannot be written: {error.strerror}") from None


def admit(spec: Spec, out: Path, resume: bool, overwrite: bool) -> tuple[State | None, bool]:
    """Look at a claimed output before anything is loaded; nothing is changed but what killed runs and complete ones leave.

    Returns:
        Where to go on, ``None`` for a new run; and whether nothing is left to do.

    Raises:
        ResultsError: If the output may not be replaced, or cannot be continued.
        RunError: If something is in the way.
    """
    leftover = state_path(out)
    if os.path.lexists(leftover) and not stat.S_ISREG(os.lstat(leftover).st_mode):
        raise ResultsError(
            f"{leftover}: is not a regular file, and the run needs this name; choose another output"
        )
    if resume:
        found = _go_on(spec, out, leftover)
    else:
        _check_replaceable(out, leftover, overwrite)
        found = None, False
    sweep(out, leftover)
    return found


def refuse_another_run(
    path: Path, state: State, bound: Row, inputs: Mapping[str, str], examples: str | None
) -> None:
    """Refuse to go on, from the state at ``path``, with another spec or other data.

    Args:
        path: Where the state lies.
        state: Of the run so far.
        bound: The spec's data, nothing left open.
        inputs: The files that the run reads now, to the digests of their contents.
        examples: A digest of the examples now, where no file tells.

    Raises:
        ResultsError: Naming what differs.
    """
    _check_same_spec(path, state.spec, bound)
    names = {**state.inputs, **inputs}
    changed = [name for name in names if state.inputs.get(name) != inputs.get(name)]
    if state.environment and state.environment.get("examples") != examples:
        changed.append(f"the examples of dataset {bound['dataset']['name']!r}")
    if changed:
        raise ResultsError(
            f"{path}: the data have changed since the run began ({', '.join(changed)}); resume with the same data, "
            "or use --overwrite to start again"
        )


def _check_file(spec: Spec, out: Path) -> None:
    if not out.parent.is_dir():
        raise ResultsError(f"{out}: the folder {out.parent} does not exist")
    longest = _NAME_MAX - len(STATE_SUFFIX) - TEMPORARY_SUFFIX
    if len(os.fsencode(out.name)) > longest:
        raise ResultsError(
            f"{out}: its name has {len(os.fsencode(out.name))} bytes; one of at most {longest} leaves room for the "
            "files beside it"
        )
    if out.is_dir():
        raise ResultsError(f"{out}: is a folder; the output must be a file")
    if os.path.lexists(out) and not stat.S_ISREG(os.lstat(out).st_mode):
        raise ResultsError(f"{out}: is not a regular file; the output must be one")
    if out.exists() and any(source.exists() and out.samefile(source) for source in spec.sources):
        raise ResultsError(f"{out}: the run reads this file and cannot write its results over it")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise ResultsError(f"{out}: the folder {out.parent} is not writable")


def _check_replaceable(out: Path, leftover: Path, overwrite: bool) -> None:
    there, left = os.path.lexists(out), os.path.lexists(leftover)
    if there and not overwrite:
        raise ResultsError(f"{out}: exists; use --overwrite to replace it, or --resume to continue it")
    if left and not overwrite:
        raise ResultsError(
            f"{leftover}: there is a state of an unfinished run; use --resume to continue it, or --overwrite to start again"
        )
    if there and not ours.is_results(out):
        raise ResultsError(
            f"{out}: is not a results file that prunekit wrote, so --overwrite does not replace it; remove it, or "
            "choose another output"
        )
    # Beside a results file whatever has the state's name is the state, if a damaged one.
    if left and not (there or ours.is_state(leftover)):
        raise ResultsError(
            f"{leftover}: is not a state that prunekit wrote, and the run needs this name; remove it, or choose "
            "another output"
        )


def _go_on(spec: Spec, out: Path, leftover: Path) -> tuple[State | None, bool]:
    # What is open here is decided by the data, which are not read yet: refuse_another_run compares the rest.
    wanted = {key: value for key, value in spec.data.items() if not (key == "loss" and value is None)}
    recorded: dict[str, int] | None = None
    if out.exists():
        with open_results(out) as results:
            complete = results.summary["status"] == "complete"
            if not complete:  # first: defaults may have been added since, and would look like another spec
                check_version(out, results.summary["format_version"])
            _check_same_spec(out, results.summary["spec"], wanted)
            recorded = results.finished
        if complete:
            leftover.unlink(missing_ok=True)
            return None, True
    if not leftover.exists() and recorded is None:
        return None, False
    state = State.load(leftover)
    _check_same_spec(leftover, state.spec, wanted)
    state.catch_up(out)
    _check_belongs(out, recorded, state)
    return state, False


def _check_same_spec(path: Path, recorded: Row, wanted: Row) -> None:
    # The folder may have been moved; the data in it are compared by their contents.
    different = [key for key in wanted if key != "folder" and recorded.get(key) != wanted[key]]
    if different:
        raise ResultsError(
            f"{path}: belongs to another spec (differs in {', '.join(different)}); "
            "resume with the same spec, or use --overwrite to start again"
        )


def _check_belongs(path: Path, recorded: Mapping[str, int] | None, state: State) -> None:
    """Refuse a state that is not this file's: it is level with it or one event ahead, never anything else."""
    finished = state.finished
    if recorded is None and not any(finished.values()):
        return  # stopped before the file was made
    ahead = {key: finished[key] - (recorded or {}).get(key, 0) for key in finished}
    together = max(ahead.pop("attempts"), ahead.pop("steps"))  # an attempt that stays comes with its step
    if recorded is None or min(together, *ahead.values()) < 0 or together + sum(ahead.values()) > 1:
        raise ResultsError(
            f"{path}: {'missing' if recorded is None else 'not the file that the state belongs to'}, "
            "so its run cannot be resumed; use --overwrite to start again"
        )
