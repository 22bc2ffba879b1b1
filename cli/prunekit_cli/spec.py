"""``prunekit validate`` and ``prunekit schema``."""

from __future__ import annotations

import json
from pathlib import Path

from prunekit_cli import console


def validate(spec: Path, settings: list[str], block: list[str]) -> None:
    """Check a spec; problems go to stderr and make the exit code 2."""
    from prunekit.plugins.host import PluginManager, default_manager
    from prunekit.spec import load

    with console.only_results():
        manager = PluginManager(block=block) if block else default_manager()
        loaded = load(spec, console.overrides(settings), manager)
        part = loaded.part("prune", "scheduler")
        levels = len(part.build().levels()) if part is not None else 0
    print(
        f"{spec}: valid: {loaded.data['model']['name']} on {loaded.data['dataset']['name']}, "
        f"criterion {loaded.data['prune']['criterion']['name']}, {levels} pruning step{'s' if levels != 1 else ''}"
    )


def schema() -> None:
    """Print the JSON Schema."""
    from prunekit.spec import json_schema

    with console.only_results():
        text = json.dumps(json_schema(), indent=2)
    print(text)
