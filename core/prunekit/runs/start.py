"""A resolved spec and an output: looked at, claimed, and run."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from prunekit.distributed import from_first, rank
from prunekit.observing.listener import Listener
from prunekit.plugins.host import PluginManager
from prunekit.results.claim import claimed
from prunekit.runs.resume import admit, check_place
from prunekit.runs.run import execute
from prunekit.runs.shared import Shared
from prunekit.runs.trained import Source
from prunekit.spec.resolve import Spec


def start(
    spec: Spec,
    out: Path,
    manager: PluginManager,
    listener: Listener | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    source: Source | None = None,
    shared: Shared | None = None,
) -> None:
    """Run a spec into an output, or go on with what is there.

    Args:
        spec: Resolved.
        out: No link.
        manager: What plugins there are.
        listener: Follows the progress.
        resume: Go on with an unfinished output; start an absent one; leave a complete one alone.
        overwrite: Replace an output that is there.
        source: May have the dense network already.
        shared: What runs of this process have in common.

    Raises:
        ResultsError: If the output exists, cannot be resumed, or another process is writing it.
        RunError: If the run fails; its file then says so and can be resumed.
    """
    if rank() == 0:
        check_place(spec, out, resume, overwrite)
    with claimed(out) if rank() == 0 else nullcontext():
        state, complete = from_first(admit(spec, out, resume, overwrite) if rank() == 0 else (None, False))
        if not complete:
            execute(spec, out, state, manager, listener, source, shared)
