"""``prunekit validate`` and ``prunekit schema``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit_cli import console

if TYPE_CHECKING:
    from prunekit.plugins.host import PluginManager
    from prunekit.pruning.coverage import Coverage
    from prunekit.spec import Spec


_EXAMPLES = 8  # that show how weights are used


def validate(
    spec: Path, settings: list[str], block: list[str], code: bool = True, build: bool = False
) -> None:
    """Check a spec; problems go to stderr and make the exit code 2. If asked, build what it names and look at it."""
    from prunekit.plugins.host import manager_for
    from prunekit.spec import load

    with console.only_results():
        manager = manager_for(block, code)
        loaded = load(spec, console.overrides(settings), manager)
        pruning = _pruning(loaded)
        found = _covered(loaded, manager) if build else None
    print(f"{spec}: valid: {loaded.data['model']['name']} on {loaded.data['dataset']['name']}, {pruning}")

    if found is None:
        return
    from prunekit.masks.prunable import shortened

    columns, rows = found.table()
    console.stdout().print(console.table("What is pruned, in weights", columns, rows, left=1))
    for why, names in found.reasons().items():
        console.stdout().print(f"not pruned, {why}: {shortened(names)}")
    if found.warning:
        console.stderr().print(f"warning: {found.warning}")


def _covered(spec: Spec, manager: PluginManager) -> Coverage:
    """What a spec's network has, looked at on a few training examples."""
    from prunekit.pruning.coverage import coverage
    from prunekit.runs.plan import bind

    plan = bind(spec, manager)
    few = plan.splits.train.first(_EXAMPLES)
    prune = spec.settings.prune
    return coverage(plan.model, [(few.x, few.y)], None if prune is None else prune.prunable)


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
