"""A results file that a release has written keeps opening, with what it held."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running

import prunekit as pk

DATA = Path(__file__).parents[1] / "data"
FILES = sorted(DATA.glob("results-*.h5"))


def holds(found: Any, recorded: Any) -> bool:
    """Is everything recorded still there? Keys may have been added."""
    if isinstance(recorded, dict):
        return isinstance(found, dict) and all(k in found and holds(found[k], v) for k, v in recorded.items())
    if isinstance(recorded, list):
        return (
            isinstance(found, list)
            and len(found) == len(recorded)
            and all(holds(f, r) for f, r in zip(found, recorded, strict=True))
        )
    return bool(found == recorded)


def arrays(results: pk.Results) -> dict[str, np.ndarray]:
    """Everything that a reader can ask for, by a path of its own."""
    found: dict[str, np.ndarray] = {}
    for step in range(1, len(results.summary["steps"]) + 1):
        found |= {f"masks/{step}/{name}": mask for name, mask in results.masks(step).items()}
        found[f"examples/{step}"] = results.examples(step)
    for phase in ("dense", "pruned", "finetuned"):
        found |= {f"weights/{phase}/{name}": array for name, array in results.weights(phase).items()}
        found |= {f"history/{phase}/{name}": array for name, array in results.history(phase).items()}
    for name in results.summary["probes"]:
        for group, series in results.probe(name).items():
            found |= {f"probe/{group}/{key}": array for key, array in series.items()}
    return found


def test_the_first_release_left_a_file() -> None:
    assert DATA / "results-0.1.0.h5" in FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_of_an_earlier_release_keeps_its_summary_and_arrays(path: Path) -> None:
    recorded = json.loads(path.with_suffix(".json").read_text())
    with pk.open(path) as results:
        assert holds(results.summary, recorded["summary"])
        found = {
            name: [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()[:16]]
            for name, array in arrays(results).items()
        }
    assert holds(found, recorded["arrays"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_of_an_earlier_release_can_be_inspected(path: Path) -> None:
    code, out, err = running.cli("inspect", path, "--layers")
    assert (code, err) == (0, "")
    assert "complete" in out
