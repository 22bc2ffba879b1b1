"""Where no torch is needed none is loaded, and plugins use nothing but what is documented."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = (
    "prunekit, prunekit.errors, prunekit.component, prunekit.records, prunekit.seeds, prunekit.data",
    "prunekit.losses.base, prunekit.masks.settings, prunekit.masks.weights, prunekit.masks.apportion",
    "prunekit.statistics.base, prunekit.statistics.request, prunekit.observing.probe, prunekit.observing.recorder",
    "prunekit.pruning.criterion, prunekit.pruning.proposal, prunekit.pruning.scheduler, prunekit.pruning.selector",
    "prunekit.results, prunekit.plugins.host, prunekit.plugins.build, prunekit.spec, prunekit.distributed",
    "prunekit.training.settings, prunekit.testing, prunekit_cli.main",
    "prunekit.reports.notebook, prunekit.reports.notebook_progress, prunekit.sweeps.opened, prunekit.sweeps.table",
)
PLUGINS = (
    "models, datasets, losses, criteria, schedulers, selectors, statistics, probes, recorders, executors"
)


@pytest.mark.parametrize(
    "modules", [*WITHOUT_TORCH, ", ".join(f"prunekit_plugins.{kind}" for kind in PLUGINS.split(", "))]
)
def test_these_load_no_torch(modules: str) -> None:
    code = f"import sys; import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("room", ["", "statistics", "masks", "testing"])
def test_every_public_name_is_where_the_stub_says(room: str) -> None:
    from importlib import import_module

    name = f"prunekit.{room}".rstrip(".")
    package = sys.modules.get(name) or import_module(name)
    stub = ast.parse((ROOT / "core" / "prunekit" / room / "__init__.pyi").read_text(encoding="utf-8"))
    names = [
        (f"{name}.{node.module}", alias.name)
        for node in ast.walk(stub)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert names
    for module, public in names:
        assert getattr(package, public) is getattr(import_module(module), public)
        assert public in package.__all__ or public == "__version__"


def imports(path: Path) -> list[tuple[str, str]]:
    """Module and name of everything that a file imports from prunekit."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "prunekit":
            found += [(str(node.module), alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names if alias.name.split(".")[0] == "prunekit"]
    return found


def documented() -> dict[str, set[str]]:
    """Package to its names, from the table in docs/plugins.md."""
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    _, _, section = page.partition("## What plugins may import\n")
    section = section.partition("\n## ")[0]
    rows = re.findall(r"^\| `(prunekit[\w.]*)` \| (.*) \|$", section, re.M)
    return {package: set(re.findall(r"`(\w+)`", names)) for package, names in rows}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "plugins").rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_built_in_plugins_import_only_what_is_documented_for_everyone(path: Path) -> None:
    public = documented()
    for module, name in imports(path):
        assert name in public.get(module, ()), f"{path.name} imports {name or module} from {module}"


def test_what_is_documented_for_plugins_is_there() -> None:
    from importlib import import_module

    for package, names in documented().items():
        module = import_module(package)
        for name in names:
            assert hasattr(module, name), f"{package}.{name}"
