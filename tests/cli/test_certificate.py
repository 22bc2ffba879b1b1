"""Certificates on the screen and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import running

import prunekit as pk
from prunekit.reports.certificate import headline, is_certificate


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificate")
    running.write_data(folder / "data.npz")
    prune = {
        "criterion": {"name": "combinatorial", "damping": 0.3},
        "scheduler": {"name": "exponential", "sparsity": 0.8, "steps": 4},
        "examples": 50,
    }
    spec = running.mapping(
        folder, prune=prune, probes=["certificate", {"name": "certificate", "label": "all", "exact": True}]
    )
    pk.run(spec, folder / "out.h5").close()
    return folder / "out.h5"


def row(step: int, value: float, bound: float, relative: float | None) -> dict[str, Any]:
    numbers = {"fitted": value, "budget": 9, "damping": 0.1, "proved": relative is not None}
    found = {"step": step, "value": value, "bound": bound, "gap": value - bound, "relative_gap": relative}
    return found | numbers


def test_inspect_says_in_a_line_how_far_the_worst_step_is_from_the_best_choice(results: Path) -> None:
    code, out, _ = running.cli("inspect", results)
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("certificate: "))
    assert "of the best choice under its model, proved (the widest of 4 steps, at step " in line


def test_the_line_says_what_it_cannot_put_as_a_fraction() -> None:
    rows = [row(1, 1.0, 0.999, 0.001), row(2, 0.1, -0.1, None), row(3, 2.0, 1.0, 1.0)]
    assert headline("mine", rows) == (
        "mine: within 100 % of the best choice under its model, proved (the widest of 2 steps, at step 3); at 1 step "
        "whose value and bound have different signs, no further than 0.2000 from the best choice"
    )
    assert "within 0.1 % of the best choice under its model, proved (its only step)" in headline(
        "mine", rows[:1]
    )
    nothing = {**row(1, 1.0, 1.0, None), "value": None, "bound": None, "gap": None}
    assert headline("mine", [nothing]) == "mine: no bound has been found"
    assert not is_certificate([{"step": 1, "value": 2.0}])
    assert not is_certificate([])


def test_one_certificate_is_shown_as_a_table_and_as_json(results: Path) -> None:
    code, out, _ = running.cli("inspect", results, "--probe", "all")
    assert code == 0
    for word in ("value", "fitted", "bound", "gap", "optimum", "nodes", "at most"):
        assert word in out
    code, out, _ = running.cli("inspect", results, "--probe", "certificate", "--json")
    assert json.loads(out) == pk.open(results).summary["probes"]["certificate"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_it_has_a_picture(results: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"certificate.{suffix}"
    code, out, _ = running.cli("inspect", results, "--plot", file, "--figure", "certificate")
    assert (code, file.stat().st_size > 1000) == (0, True), out
