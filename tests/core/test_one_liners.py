"""The lines of docs/format.md that read a file without prunekit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running

import prunekit as pk

PAGE = Path(__file__).parents[2] / "docs" / "format.md"


def test_the_documented_lines_read_what_prunekit_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pandas", reason="needs pandas")
    pytest.importorskip("xarray", reason="needs xarray")
    (code,) = re.findall(
        r"Without prunekit, one line each:\n\n```python\n(.*?)```", PAGE.read_text("utf-8"), re.S
    )
    running.write_data(tmp_path / "data.npz")
    probes = ["error_budget", "line", {"name": "plane", "points": 3}, {"name": "spectrum", "iterations": 5}]
    pk.run(running.mapping(tmp_path, probes=probes), tmp_path / "run.h5").close()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    with pk.open("run.h5") as results:
        summary = results.summary
        assert names["steps"]["train_loss"].tolist() == [s["train_loss"] for s in summary["steps"]]
        rows = summary["probes"]["error_budget"]["steps"]
        assert names["budget"]["measured"].tolist() == [row["measured"] for row in rows]
        line = results.probe("line")["dense_to_pruned"]
        assert names["line"]["train_loss"].dims == ("point",)
        assert np.array_equal(names["line"]["train_loss"], line["train_loss"])
        assert names["plane"]["train_loss"].dims == ("y", "x")
        assert np.array_equal(names["plane"]["train_loss"], results.probe("plane")["plane"]["train_loss"])
        assert names["largest"] == results.probe("spectrum")["spectrum"]["eigenvalues"][0]
    names["file"].close()
