"""What goes to standard output, and where files are written: streams that are closed, links, the home folder."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import running
from safetensors.numpy import load_file

import prunekit as pk

NOISY = Path(__file__).parents[1] / "data" / "noisy"


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return running.write_spec(tmp_path)


def in_a_shell(command: str, *paths: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own; ``prunekit`` in the text is the command."""
    command = command.replace("prunekit", f'"{sys.executable}" -m prunekit_cli')
    path = os.pathsep.join([*map(str, paths), *sys.path])
    return subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_run_without_standard_streams_writes_its_results(closed: str, spec: Path, tmp_path: Path) -> None:
    done = in_a_shell(f"prunekit run {spec} --out out.h5 {closed}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    running.cli("run", spec, "--out", tmp_path / "other.h5")
    assert running.contents(tmp_path / "out.h5") == running.contents(tmp_path / "other.h5")


@pytest.mark.parametrize(
    ("command", "code"),
    [("inspect out.h5 --json", 0), ("plugins", 0), ("schema", 0), ("--version", 0), ("inspect absent.h5", 2)],
)
def test_commands_without_standard_output_keep_their_exit_codes(command: str, code: int, spec: Path) -> None:
    running.cli("run", spec, "--out", "out.h5")
    done = in_a_shell(f"prunekit {command} >&-")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", ["plugins --json", "schema", "plugins show noisy --json", "check criterion:noisy --json"]
)
def test_standard_output_holds_json_alone_whatever_a_plugin_prints(command: str, spec: Path) -> None:
    done = in_a_shell(f"prunekit {command}", NOISY)
    assert json.loads(done.stdout)
    for word in ("printed", "past a redirection", "past Python", "by a child", "registered"):
        assert word in done.stderr


def test_a_runs_standard_output_is_its_overview_whatever_a_plugin_prints(spec: Path) -> None:
    done = in_a_shell(
        f"prunekit run {spec} --out out.h5 --set prune.criterion=noisy --set finetune=null", NOISY
    )
    assert done.returncode == 0, done.stderr
    assert "asked for saliencies" in done.stderr
    for word in ("printed", "past", "child", "registered", "asked"):
        assert word not in done.stdout
    assert "Results in out.h5" in done.stdout


# -- the home folder -------------------------------------------------------------------------------


def test_a_tilde_is_the_home_folder_in_specs_and_arguments(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.cli("run", spec, "--out", "plain.h5")
    running.cli("export", "plain.h5", "--phase", "dense", "--weights", "w.safetensors")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("data.npz", "w.safetensors", "small.yaml"):
        (tmp_path / name).rename(home / name)
    sets = {"dataset.path": "~/data.npz", "model.checkpoint": "~/w.safetensors"}
    with pk.run("~/small.yaml", "~/out.h5", sets) as results:
        assert results.path == home / "out.h5"
        assert list(results.summary["inputs"]) == ["~/data.npz", "~/w.safetensors"]
        dense = results.summary["dense"]
        assert results.summary["spec"]["dataset"]["path"] == "~/data.npz"  # as written, on every machine
    with pk.open("plain.h5") as plain:
        assert plain.summary["dense"] == dense
    assert running.cli("inspect", "~/out.h5")[0] == 0
    assert running.cli("inspect", "~/out.h5", "--plot", "~/p.png")[0] == 0
    assert running.cli("export", "~/out.h5", "--masks", "~/m.safetensors")[0] == 0
    assert (home / "p.png").is_file()
    assert (home / "m.safetensors").is_file()
    assert not (tmp_path / "~").exists()
    assert "cannot write its results over it" in running.refused(
        "run", "~/small.yaml", "--out", "~/data.npz", "--overwrite", "--set", "dataset.path=~/data.npz"
    )


def test_a_home_that_is_not_there_is_a_name_like_any_other(spec: Path) -> None:
    assert "~nobody-of-this-name" in running.refused(
        "run", spec, "--out", "out.h5", "--set", "dataset.path=~nobody-of-this-name/data.npz"
    )


# -- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True])
def test_results_go_where_a_link_leads_and_the_link_stays(there: bool, spec: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    if there:
        (scratch / "real.h5").touch()
    (tmp_path / "link.h5").symlink_to(scratch / "real.h5")
    (tmp_path / "links.h5").symlink_to("link.h5")
    assert ("exists" in running.cli("run", spec, "--out", "links.h5")[2]) == there
    assert running.cli("run", spec, "--out", "links.h5", "--overwrite")[0] == 0
    assert (tmp_path / "links.h5").is_symlink()
    assert (tmp_path / "link.h5").is_symlink()
    with pk.open(scratch / "real.h5") as results:
        assert results.summary["status"] == "complete"
    assert {path.name for path in scratch.iterdir()} == {"real.h5"}


def test_a_run_behind_a_link_can_be_stopped_and_resumed(spec: Path, tmp_path: Path) -> None:
    from prunekit.observing.listener import Listener

    class Stop(Listener):
        def step(self, record: pk.StepRecord) -> None:
            raise KeyboardInterrupt

    (tmp_path / "scratch").mkdir()
    (tmp_path / "link.h5").symlink_to("scratch/real.h5")
    with pytest.raises(KeyboardInterrupt):
        pk.run(spec, "link.h5", listener=Stop())
    assert (tmp_path / "scratch" / "real.h5.state").is_file()
    pk.run(spec, "link.h5", resume=True).close()
    pk.run(spec, "straight.h5").close()
    assert (tmp_path / "link.h5").is_symlink()
    assert (
        running.read(tmp_path / "scratch" / "real.h5").keys() == running.read(tmp_path / "straight.h5").keys()
    )


def test_a_link_into_a_folder_that_is_not_there_is_refused(spec: Path, tmp_path: Path) -> None:
    (tmp_path / "link.h5").symlink_to("absent/real.h5")
    assert "absent does not exist" in running.refused("run", spec, "--out", "link.h5")


def test_exports_go_where_a_link_leads(spec: Path, tmp_path: Path) -> None:
    running.cli("run", spec, "--out", "out.h5")
    (tmp_path / "w").symlink_to("real.safetensors")
    assert running.cli("export", "out.h5", "--weights", "w")[0] == 0
    assert (tmp_path / "w").is_symlink()
    assert load_file(tmp_path / "real.safetensors")


# -- plain h5py ------------------------------------------------------------------------------------


def test_plain_h5py_reads_beside_an_open_result_and_the_other_way_round(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    with pk.run(spec, out) as results, h5py.File(out, "r") as file, pk.open(out) as again:
        assert file.attrs["status"].decode() == results.summary["status"] == "complete"
        assert again.summary == results.summary
        (step,) = np.nonzero(file["steps/step"][()] == 3)[0]
        assert file["steps/sparsity"][step] == results.summary["steps"][step]["sparsity"]


@pytest.mark.parametrize("locking", [None, True, False, "best-effort"])
def test_a_run_goes_on_while_its_file_is_open_in_the_same_process(
    locking: bool | str | None, spec: Path, tmp_path: Path
) -> None:
    from prunekit.observing.listener import Listener

    out = tmp_path / "out.h5"
    opened = []

    class Look(Listener):
        def step(self, record: pk.StepRecord) -> None:
            opened.append(h5py.File(out, "r", locking=locking))
            assert len(opened[-1]["steps/step"]) == record.step

    with pk.run(spec, out, listener=Look()) as results:
        assert len(results.summary["steps"]) == len(opened) == 3
    for file in opened:
        file.close()


def test_a_file_that_is_locked_elsewhere_can_be_read(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    pk.run(spec, out).close()
    with out.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="unable to lock"):
            h5py.File(out, "r")
        with pk.open(out) as results:
            assert results.summary["status"] == "complete"
