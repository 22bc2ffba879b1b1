"""The example plugin: it builds, installs, is found, runs and passes its own tests."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "plugin"


def call(
    *arguments: str, path: Path | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"}
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        cwd=cwd,
        env=environment,
    )


def prunekit(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    return call("-c", "from prunekit_cli.main import main; main()", *arguments, path=path)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that building leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("source") / "plugin"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache", "*.h5"))
    return copy


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for needed in ("pip", "hatchling"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs {needed}, which builds the example")
    target = tmp_path_factory.mktemp("installed")
    done = call(
        *("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--disable-pip-version-check", "--target", str(target), str(source)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_it_is_found_and_listed_with_its_options(installed: Path) -> None:
    rows = json.loads(prunekit("plugins", "--json", path=installed).stdout)
    mine = [r for r in rows if r["distribution"] == "prunekit-squared"]
    assert [(r["kind"], r["name"], r["status"]) for r in mine] == [
        ("criterion", "squared", "loaded"),
        ("probe", "zeros", "loaded"),
    ]
    (shown,) = json.loads(prunekit("plugins", "show", "squared", "--json", path=installed).stdout)
    assert {o["name"]: o["default"] for o in shown["options"]} == {"lambda": "0.0", "power": "2.0"}


def test_its_spec_runs(installed: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.h5"
    done = prunekit("run", str(source / "spec.yaml"), "--out", str(out), path=installed)
    assert done.returncode == 0, done.stderr
    shown = prunekit("inspect", "--json", str(out), path=tmp_path)  # reading needs no plugin
    summary = json.loads(shown.stdout)
    assert summary["status"] == "complete"
    assert summary["spec"]["prune"]["criterion"] == {"name": "squared", "lambda": 1e-6, "power": 2.0}
    assert summary["steps"][-1]["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert all(step["predicted_delta_loss"] is None for step in summary["steps"])
    assert set(summary["probes"]["zeros"]) == {"dense", "pruned", "finetuned"}


def test_a_misspelled_option_is_told_with_its_place(installed: Path, source: Path) -> None:
    broken = source / "broken.yaml"
    broken.write_text((source / "spec.yaml").read_text().replace("power:", "powr:"))
    done = prunekit("validate", str(broken), path=installed)
    assert done.returncode == 2
    assert f"{broken}:9:" in done.stderr
    assert "power" in done.stderr


def test_its_own_tests_pass(installed: Path, source: Path) -> None:
    done = call(
        *("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", str(source)),
        str(source / "tests"),
        path=installed,
        cwd=source / "tests",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "passed" in done.stdout
