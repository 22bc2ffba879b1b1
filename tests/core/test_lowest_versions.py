"""All lowest versions that are declared, at once, on each Python that is here and torch has a build for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MINIMA = Path(__file__).parents[2] / ".ci/minima"


@pytest.mark.slow
@pytest.mark.parametrize("python", ["python3.11", "python3.12", "python3.13", "python3.14"])
def test_the_lowest_versions_work_together(python: str) -> None:
    """Installs into an environment of its own; ``.ci/run`` has the newest of everything."""
    if not MINIMA.is_file() or shutil.which("bash") is None:
        pytest.skip("needs a checkout and bash")
    if shutil.which(python) is None or subprocess.run([python, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"there is no {python}")
    done = subprocess.run(
        ["bash", MINIMA], env={**os.environ, "PYTHON": python}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
