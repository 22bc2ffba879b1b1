"""What every worker of a sweep does, wherever it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunekit.plugins.host import manager_for
from prunekit.sweeps.folder import Folder
from prunekit.sweeps.plan import Told, load


def worker(
    file: Path, place: Path, block: Sequence[str] = (), code: bool = True, told: Told | None = None
) -> None:
    """Do what is left of a sweep, with its threads.

    Args:
        file: The sweep.
        place: Its folder.
        block: Plugins to leave out.
        code: Whether other code than built-in code may run.
        told: Is told what happens.
    """
    # Here, so that who only starts workers needs no torch.
    import torch

    from prunekit.sweeps.work import work

    manager = manager_for(block, code)
    plan = load(file, manager)
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        work(plan, Folder(place), manager, told or (lambda one, what: None))
    finally:
        torch.set_num_threads(before)
