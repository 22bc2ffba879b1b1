"""Runs that are killed, collide, and are refused by the system: bit for bit what they would have been, or a refusal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torture

FEW = {"kills": 14, "collisions": 9, "limits": 8}
FULL = {"kills": 500, "collisions": 216, "limits": 80}


@pytest.mark.parametrize("kind", FEW)
def test_what_disturbs_a_run_loses_and_changes_nothing(kind: str, tmp_path: Path) -> None:
    assert torture.KINDS[kind](tmp_path, FEW[kind], seed=1)[kind] == FEW[kind]


def disks(count: int) -> None:
    """Fill up disks, in a process that may mount some."""
    unshare = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        possible = subprocess.run(unshare, capture_output=True).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("needs to mount a file system")
    command = ["unshare", "--mount", sys.executable, torture.__file__, "disks", str(count)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert f"{count}  disks" in done.stdout


def test_a_disk_that_fills_up_loses_nothing() -> None:
    disks(3)


@pytest.mark.slow
def test_disks_that_fill_up_lose_nothing() -> None:
    disks(40)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FULL)
def test_whatever_disturbs_a_run_loses_and_changes_nothing(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = torture.KINDS[kind](tmp_path, FULL[kind], seed=2)
    with capsys.disabled():
        print(f"\n{torture.report(counts)}")
    assert counts[kind] == FULL[kind]
