"""What screens show: columns that fit, probes in a line, no live bar where nobody looks."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import running
from rich.console import Console

import prunekit as pk
from prunekit.reports.in_short import in_short
from prunekit_cli import console, overview


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    running.write_data(folder / "data.npz")
    probes = ["error_budget", "line", "layers", {"name": "oracle", "resamples": 10, "moments": ["dense"]}]
    spec = running.mapping(folder, probes=probes)
    spec["prune"]["scheduler"] = {"name": "exponential", "sparsity": 0.9, "steps": 40}
    pk.run(spec, folder / "out.h5").close()
    return folder / "out.h5"


def screen(path: Path, width: int) -> str:
    shown = Console(file=io.StringIO(), width=width, highlight=False)
    with pk.open(path) as results:
        for part in overview.overview(results):
            shown.print(part)
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_no_number_is_cut_however_narrow_the_terminal(width: int, made: Path) -> None:
    text = screen(made, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    with pk.open(made) as results:
        last = results.summary["steps"][-1]
    assert f"{100 * last['sparsity']:.3f} %" in text
    assert f"{last['delta_loss']:.4f}" in text
    assert ("no room for seconds" in text) == (width < 120)


def test_many_steps_and_probes_fit_a_screen(made: Path) -> None:
    text = screen(made, 120)
    assert "Steps (every 4th of 40; all with --json)" in text
    assert len(text.splitlines()) < 50


def test_a_probe_is_a_line_of_what_its_headline_names(made: Path) -> None:
    text = screen(made, 400)
    (line,) = [line for line in text.splitlines() if line.startswith("oracle:")]
    with pk.open(made) as results:
        found = results.summary["probes"]["oracle"]["dense"]["criteria"]
        assert results.headline("oracle") == ["criteria.*.spearman"]
        assert results.headline("line") == ["*.train_end", "*.train_barrier"]
        with pytest.raises(pk.ResultsError, match="no probe 'far'"):
            results.headline("far")
    for name, correlations in found.items():
        assert f"{name} spearman {correlations['spearman']:.4f}" in line
    (line,) = [line for line in text.splitlines() if line.startswith("layers:")]
    assert line.count("█") >= 2  # two curves


@pytest.mark.parametrize(
    ("summary", "keys", "said"),
    [
        ({}, (), "p: nothing to say in short"),
        ({"a": 1.5, "b": {"c": [1.0, 2.0]}}, (), "p: a 1.5000, b c 1, 2"),
        ({"a": 1.5, "b": {"c": 2, "d": 3}}, ("b.*",), "p: c 2, d 3"),
        ({"a": 1.5}, ("far.*.off",), "p: a 1.5000"),
        ({"pruned": {"norm": 2.0}}, ("norm",), "p: after pruning norm 2.0000"),
        ({"steps": [{"step": 1, "x": 0.0}, {"step": 2, "x": None}, {"step": 3, "x": 4.0}]}, (), "p: x 0.0000 _ # 4.0000"),
        ({"steps": [None, "torn"]}, ("x",), "p: nothing to say in short"),
    ],
)  # fmt: skip
def test_what_a_probe_says_in_short(summary: dict[str, Any], keys: tuple[str, ...], said: str) -> None:
    assert in_short("p", summary, keys, "ascii") == f"{said}; more with --probe p"


def test_formats_keep_every_column(made: Path) -> None:
    code, out, _ = running.cli("inspect", made, "--format", "csv")
    assert code == 0
    assert "train loss,valid loss,test loss,test error,seconds" in out


def test_a_log_gets_no_live_bar_even_if_colours_are_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    spec = running.write_spec(tmp_path)
    code, _, err = running.cli("run", spec, "--out", tmp_path / "out.h5")
    assert code == 0
    assert "\x1b[2K" not in err  # nothing is drawn over
    assert "probes 1/1" in err


def test_a_width_is_for_a_picture(made: Path) -> None:
    assert "give both" in running.refused("inspect", made, "--columns", "1")
    assert "give both" in running.refused("compare", made, made, "--columns", "2")
    assert console.table(None, ["a"], [["b"]]).columns[0].header == "a"


def test_a_run_ends_with_what_to_look_at_first(made: Path, tmp_path: Path) -> None:
    spec = running.write_spec(tmp_path)
    code, out, _ = running.cli("run", spec, "--out", tmp_path / "out.h5", "--set", "probes=[error_budget]")
    assert code == 0
    *_, first, second, _ = out.split("\n")
    assert first.endswith(f": prunekit inspect {tmp_path}/out.h5 --plot out.png --figure error_budget")
    assert (
        second
        == f"Results in {tmp_path}/out.h5; on one page: prunekit inspect {tmp_path}/out.h5 --html out.html"
    )


def test_a_shell_can_ask_what_may_come_next() -> None:
    asked = {"_PRUNEKIT_COMPLETE": "complete_bash", "COMP_WORDS": "prunekit insp", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "prunekit_cli"],
        env={**os.environ, **asked, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["inspect"]
