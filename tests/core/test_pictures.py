"""Pictures and exports of results: named figures, widths for papers, and nobody's settings in between."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import running
from matplotlib import rcParams
from matplotlib.figure import Figure
from safetensors.numpy import load_file

import prunekit as pk
from prunekit.reports.figures import figure as named


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    running.write_data(folder / "data.npz")
    probes = ["error_budget", "line", {"name": "layers", "label": "rooms"}]
    pk.run(running.mapping(folder, probes=probes), folder / "out.h5").close()
    return folder / "out.h5"


def filled(path: Path, name: str) -> Figure:
    figure = Figure()
    with pk.open(path) as results:
        named(results, name)(figure)
    return figure


def line(figure: Figure, panel: int, label: str) -> list[float]:
    (one,) = [one for one in figure.axes[panel].get_lines() if one.get_label() == label]
    return [float(v) for v in np.asarray(one.get_ydata())]


def test_figures_show_the_numbers_of_the_file(made: Path) -> None:
    with pk.open(made) as results:
        summary = results.summary
    steps = summary["steps"]
    loss = filled(made, "loss")
    assert line(loss, 0, "validation") == [summary["dense"]["valid_loss"], *(s["valid_loss"] for s in steps)]
    assert line(loss, 0, "test, fine-tuned") == [summary["finetuned"]["test_loss"]]
    errors = [summary["dense"]["train_error"], *(s["train_error"] for s in steps)]
    assert line(loss, 1, "training") == [100 * e for e in errors]
    honesty = filled(made, "honesty")
    assert line(honesty, 0, "measured") == line(honesty, 1, "steps") == [s["delta_loss"] for s in steps]
    assert line(honesty, 0, "predicted") == [s["predicted_delta_loss"] for s in steps]
    (axis,) = filled(made, "layers").axes
    drawn = [[float(v) for v in np.asarray(one.get_ydata())] for one in axis.get_lines()]
    assert drawn == [
        *([0, *(100 * s["layers"][name] for s in steps)] for name in steps[0]["layers"]),
        [0, *(100 * s["sparsity"] for s in steps)],
    ]
    assert len(filled(made, "run").axes) == 3


def test_a_probe_is_drawn_by_its_label_and_what_has_no_picture_is_refused_with_what_has(
    made: Path, tmp_path: Path
) -> None:
    with pk.open(made) as results:
        assert len(filled(made, "rooms").axes) == 3
        assert len(filled(made, "error_budget").axes) == 2
        with pytest.raises(
            pk.SpecError,
            match="'far' is not a probe of this run; accepted: run, loss, honesty, layers, error_budget, line, rooms",
        ):
            results.plot(tmp_path / "x.png", "far")
        with pytest.raises(pk.SpecError, match=r"must end in \.png, \.pdf, \.svg"):
            results.plot(tmp_path / "x.gif")
        with pytest.raises(pk.SpecError, match="must be 1 or 2"):
            results.plot(tmp_path / "x.png", columns=3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("columns", "width"), [(1, 3.4), (2, 7.0)])
@pytest.mark.parametrize("name", ["run", "loss", "honesty", "layers", "error_budget", "line", "rooms"])
def test_figures_for_papers_are_as_wide_as_columns(
    name: str, columns: int, width: float, made: Path, tmp_path: Path
) -> None:
    with pk.open(made) as results, warnings.catch_warnings():
        warnings.simplefilter("error")  # such as of panels that found no room
        results.plot(tmp_path / "x.png", name, columns)
        results.plot(tmp_path / "x.pdf", name, columns)
    content = (tmp_path / "x.png").read_bytes()
    assert int.from_bytes(content[16:20], "big") == round(300 * width)
    assert b"/FontFile2" in (tmp_path / "x.pdf").read_bytes()  # fonts are embedded, as outlines


def test_in_one_column_panels_come_one_below_the_other(made: Path, tmp_path: Path) -> None:
    sizes = {}
    with pk.open(made) as results:
        for name in ("layers", "honesty", "run"):
            results.plot(tmp_path / "x.png", name, 1)
            sizes[name] = int.from_bytes((tmp_path / "x.png").read_bytes()[20:24], "big")
    assert sizes["honesty"] == pytest.approx(2 * sizes["layers"], abs=2)
    assert sizes["run"] == pytest.approx(3 * sizes["layers"], abs=3)


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_one_file_gives_one_picture(suffix: str, made: Path, tmp_path: Path) -> None:
    with pk.open(made) as results:
        results.plot(tmp_path / f"a.{suffix}")
        results.plot(tmp_path / f"b.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_no_setting_of_the_users_has_a_part_in_a_picture_and_none_is_changed(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pk.open(made) as results:
        results.plot(tmp_path / "a.svg")
        for key, value in {"text.usetex": True, "lines.linewidth": 9.0, "axes.grid": True}.items():
            monkeypatch.setitem(rcParams, key, value)
        before = dict(rcParams)
        results.plot(tmp_path / "b.svg")
    assert dict(rcParams) == before
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no such backend", "agg"])
def test_a_notebooks_backend_and_settings_in_another_encoding_do_no_harm(
    backend: str, made: Path, tmp_path: Path
) -> None:
    (tmp_path / "matplotlibrc").write_bytes("font.family: Münchner\n".encode("latin-1"))
    code = (
        "import os, sys, prunekit\n"
        f"prunekit.open({str(made)!r}).plot('x.png')\n"
        "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules or os.environ['MPLBACKEND'] != sys.argv[1])"
    )
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code, backend],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": backend, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_losses_that_overflowed_and_a_single_step_are_drawn(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, probes=None, finetune=None)
    spec["prune"]["scheduler"] = {"name": "one_shot", "sparsity": 0.5}
    pk.run(spec, tmp_path / "out.h5").close()
    row: dict[str, Any] = {
        "sparsity": 1.0,
        "delta_loss": None,
        "predicted_delta_loss": 1e30,
        "layers": {"w": 1.0},
    }
    with pk.open(tmp_path / "out.h5") as results:
        for step in ({}, row):
            results.summary["steps"][0] |= step
            for name in ("run", "loss", "honesty", "layers"):
                results.plot(tmp_path / "x.png", name)
                assert (tmp_path / "x.png").stat().st_size > 1000


def test_weights_and_masks_are_exported_from_python(made: Path, tmp_path: Path) -> None:
    with pk.open(made) as results:
        done = results.export(tmp_path / "w.safetensors", tmp_path / "m.safetensors", step=1)
        assert (done.phase, done.step) == ("finetuned", 1)
        for name, mask in load_file(tmp_path / "m.safetensors").items():
            assert np.array_equal(mask, results.masks(1)[name])
        for name, weight in load_file(tmp_path / "w.safetensors").items():
            assert np.array_equal(weight, results.weights("finetuned")[name])
        with pytest.raises(pk.ResultsError, match="exists; use --overwrite"):
            results.export(tmp_path / "w.safetensors")
        assert results.export(tmp_path / "w.safetensors", phase="dense", overwrite=True).phase == "dense"
        with pytest.raises(pk.SpecError, match="neither is given a file"):
            results.export()
    with h5py.File(made) as file:  # and the file is as it was
        assert file.attrs["status"] == b"complete"
