"""``prunekit validate`` and ``prunekit schema``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit_cli import console

if TYPE_CHECKING:
    from prunekit.spec import Spec


def validate(spec: Path, settings: list[str], block: list[str], code: bool = True) -> None:
    """Check a spec; problems go to stderr and make the exit code 2."""
    from prunekit.plugins.host import manager_for
    from prunekit.spec import load

    with console.only_results():
        manager = manager_for(block, code)
        loaded = load(spec, console.overrides(settings), manager)
        pruning = _pruning(loaded)
    print(f"{spec}: valid: {loaded.data['model']['name']} on {loaded.data['dataset']['name']}, {pruning}")


def _pruning(spec: Spec) -> str:
    """What a spec prunes with, in words."""
    part = spec.part("prune", "scheduler")
    if part is None:
        return "nothing is pruned"
    scheduler, criterion = part.build(), spec.data["prune"]["criterion"]["name"]
    if scheduler.adapts:
        return f"criterion {criterion}, as many pruning steps as scheduler {scheduler.name} takes"
    levels = len(scheduler.levels())
    most = "at most " if part.engine["until"] is not None else ""
    return f"criterion {criterion}, {most}{levels} pruning step{'s' if levels != 1 else ''}"


def schema() -> None:
    """Print the JSON Schema."""
    from prunekit.spec import json_schema

    with console.only_results():
        text = json.dumps(json_schema(), indent=2)
    print(text)
