"""What the fuzzer has found is mended, and what it starts from is good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import targets

FOUND = sorted((Path(__file__).parent / "found").iterdir())


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found_is_read_or_refused(path: Path) -> None:
    targets.TARGETS[path.name.partition(".")[0]](path.read_bytes())


@pytest.mark.parametrize("name", sorted(targets.TARGETS))
def test_good_inputs_are_read_or_refused(name: str) -> None:
    for seed in targets.seeds(name)[:20]:
        targets.TARGETS[name](seed)


def test_the_fuzzer_runs_without_atheris_and_says_what_it_did(tmp_path: Path) -> None:
    script = Path(__file__).with_name("fuzz.py")
    done = subprocess.run(
        [sys.executable, script, "idx", "--seconds", "2", "--how", "mutated", "--out", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("idx: ")
    assert done.stdout.endswith(" 0 found\n")
