"""Runs that are killed, collide, and are refused by the system: bit for bit what they would have been, or a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torture

FEW = {"kills": 14, "collisions": 9, "limits": 8}
FULL = {"kills": 500, "collisions": 216, "limits": 80}


@pytest.mark.parametrize("kind", FEW)
def test_what_disturbs_a_run_loses_and_changes_nothing(kind: str, tmp_path: Path) -> None:
    assert torture.KINDS[kind](tmp_path, FEW[kind], seed=1)[kind] == FEW[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", FULL)
def test_whatever_disturbs_a_run_loses_and_changes_nothing(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = torture.KINDS[kind](tmp_path, FULL[kind], seed=2)
    with capsys.disabled():
        print(f"\n{torture.report(counts)}")
    assert counts[kind] == FULL[kind]
