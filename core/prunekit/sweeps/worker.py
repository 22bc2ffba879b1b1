"""What every worker of a sweep does, wherever it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunekit.plugins.host import PluginManager, manager_for
from prunekit.sweeps.folder import Folder
from prunekit.sweeps.plan import Plan, Told, load


def worker(file: Path, place: Path, block: Sequence[str] = (), code: bool = True) -> None:
    """Do what is left of a sweep; can be pickled, and called on any machine that has its files.

    Args:
        file: The sweep.
        place: Its folder.
        block: Plugins to leave out.
        code: Whether other code than built-in code may run.
    """
    manager = manager_for(block, code)
    here(load(file, manager), Folder(place), manager, lambda one, what: None)


def here(plan: Plan, folder: Folder, manager: PluginManager, told: Told) -> None:
    """Do what is left of a sweep in this process, with the sweep's threads.

    Args:
        plan: The runs.
        folder: Where they lie.
        manager: What plugins there are.
        told: Is told what happens.
    """
    # Here, so that who only starts workers needs no torch.
    import torch

    from prunekit.sweeps.work import work

    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        work(plan, folder, manager, told)
    finally:
        torch.set_num_threads(before)
