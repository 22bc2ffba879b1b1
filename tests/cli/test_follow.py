"""``prunekit inspect --follow``, and the small bars that it draws."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import running

import prunekit as pk
from prunekit.reports.spark import spark
from prunekit.results.claim import claimed, lock_path, written
from prunekit_cli.console import Screen
from prunekit_cli.follow import follow, picture


class EnoughError(Exception):
    pass


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """A file whose run has been killed."""
    running.write_spec(tmp_path)
    code = (
        "import os, sys, prunekit as pk\n"
        "from prunekit.results import ResultsWriter\n"
        "add = ResultsWriter.add_step\n"
        "def add_step(self, row, *more, **options):\n"
        "    add(self, row, *more, **options)\n"
        "    if row['step'] == 2: os._exit(9)\n"
        "ResultsWriter.add_step = add_step\n"
        "pk.run('small.yaml', 'out.h5')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment).returncode == 9
    return tmp_path / "out.h5"


def test_a_run_is_followed_to_its_end_a_line_a_step(tmp_path: Path) -> None:
    spec = running.write_spec(tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "prunekit_cli", "run", spec, "--out", tmp_path / "out.h5"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (tmp_path / "out.h5").exists():
        assert process.poll() is None
        time.sleep(0.05)
    out = io.StringIO()
    summary = follow(tmp_path / "out.h5", Screen(file=out, width=120), lambda _: time.sleep(0.05))
    assert process.wait(timeout=60) == 0
    assert summary["status"] == "complete"
    assert [line.split()[:2] for line in out.getvalue().splitlines()] == [["step", str(i)] for i in (1, 2, 3)]


def test_a_run_that_has_died_is_said_to_have_died(unfinished: Path) -> None:
    waited: list[float] = []
    out = io.StringIO()
    with pytest.raises(
        pk.ResultsError, match="its run has died: nothing is writing it, and it ends unfinished at step 2"
    ):
        follow(unfinished, Screen(file=out, width=120), waited.append)
    assert sum(waited) >= 10
    assert out.getvalue().count("step ") == 2


def test_one_that_somebody_owns_is_waited_for(unfinished: Path) -> None:
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if sum(waited) > 100:
            raise EnoughError

    with claimed(unfinished), pytest.raises(EnoughError):
        follow(unfinished, Screen(file=io.StringIO(), width=120), wait)


def test_on_a_terminal_the_picture_is_drawn_anew(tmp_path: Path) -> None:
    pk.run(running.write_spec(tmp_path), tmp_path / "out.h5").close()
    out = io.StringIO()
    summary = follow(tmp_path / "out.h5", Screen(file=out, width=100, force_terminal=True))
    assert "train loss" in out.getvalue()
    screen = Screen(file=(plain := io.StringIO()), width=100)
    for part in picture(summary, "ascii"):
        screen.print(part)
    assert plain.getvalue().isascii() or "Δ" in plain.getvalue()
    assert "small: complete" in plain.getvalue()


def test_the_command_follows_and_then_shows_the_whole_run(tmp_path: Path, unfinished: Path) -> None:
    pk.run(tmp_path / "small.yaml", tmp_path / "whole.h5").close()
    code, out, _ = running.cli("inspect", tmp_path / "whole.h5", "--follow")
    assert code == 0
    assert "Networks" in out


def test_who_writes_is_found_without_being_disturbed(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    assert not written(out)
    with claimed(out) as claim:
        assert written(out)
        claim.check()
    assert not written(out)
    # What a killed owner leaves on this machine; on another it may live.
    lock_path(out).write_bytes(b'{"prunekit-lock": 1, "host": "elsewhere"}')
    assert written(out)
    os.utime(lock_path(out), (0, 0))
    assert not written(out)
    lock_path(out).unlink()
    os.mkfifo(lock_path(out))
    assert not written(out)


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([0.0, 1.0, None, 2.0], "▁▅ █"),
        ([float("nan"), 3.0], " ▁"),
        ([], ""),
        ([-1e300, 1e300], "▁█"),
        ([None, None], "  "),
    ],
)
def test_bars_go_from_the_lowest_to_the_highest(values: list[float | None], bars: str) -> None:
    assert spark(values) == bars


def test_many_values_are_thinned_out_and_screens_without_bars_get_plain_signs() -> None:
    thin = spark([float(i) for i in range(1000)], width=20)
    assert len(thin) == 20
    assert (thin[0], thin[-1]) == ("▁", "█")
    assert spark([0.0, 1.0], encoding="latin-1") == "_#"
    assert spark([0.0, 1.0], encoding=None) == "_#"
