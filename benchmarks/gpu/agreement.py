"""The tests of what a GPU must not change."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from figures import Figure, tell

ROOT = Path(__file__).parents[2]


def agreement(device: torch.device) -> Iterator[Figure]:
    """Statistics, operators, selection, criteria, precision, resuming: as on the CPU, in float64."""
    place = os.environ | ({} if device.type == "cuda" else {"PRUNEKIT_TEST_GPU": "cpu"})
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "tests/core/test_gpu.py",
    ]
    done = subprocess.run(command, cwd=ROOT, env=place, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    counts = {
        word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)
    }
    yield Figure("tests passed", counts.get("passed", 0), least=1, right=done.returncode == 0)
    yield Figure("tests failed", counts.get("failed", 0) + counts.get("error", 0), most=0)
    yield Figure("tests skipped", counts.get("skipped", 0), most=0 if device.type == "cuda" else None)


if __name__ == "__main__":
    tell(agreement)
