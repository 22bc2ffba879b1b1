"""The error budget and the radius on the screen and as pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import running

import prunekit as pk
from prunekit.reports.budget import headline, is_budget


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("budget")
    running.write_data(folder / "data.npz")
    spec = running.mapping(folder, probes=["error_budget", {"name": "radius", "label": "far"}, "line"])
    pk.run(spec, folder / "out.h5").close()
    return folder / "out.h5"


def row(
    parts: dict[str, float | None], impossible: bool | None = False, **calibration: Any
) -> dict[str, Any]:
    found = {"slope": None, "r_squared": None, "rank_correlation": None, "steps": 1} | calibration
    return {"step": 1, "parts": parts, "impossible": impossible, "calibration": found}


def test_inspect_says_in_a_line_which_part_is_the_biggest(results: Path) -> None:
    code, out, _ = running.cli("inspect", results)
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("error_budget: "))
    rows = pk.open(results).summary["probes"]["error_budget"]["steps"]
    parts = list(rows[0]["parts"])
    biggest = max(parts, key=lambda part: sum(abs(r["parts"][part]) for r in rows))
    assert f"the biggest part is {biggest} " in line
    assert "none of 3 steps had an impossible prediction" in line


def test_the_line_counts_what_is_impossible_and_leaves_out_what_nobody_knows() -> None:
    rows = [row({"linear": -1.0, "diagonal": 3.0}, True), row({"linear": 0.5, "diagonal": None}, True)]
    text = headline("mine", rows)
    assert text.startswith(
        "mine: the biggest part is diagonal (67 % of the sizes of all), then linear (33 %)"
    )
    assert "2 of 2 steps had an impossible prediction" in text
    assert "slope" not in text
    unknown = headline(
        "mine", [row({"a": 1.0, "b": 0.0}, None, slope=2.0, r_squared=0.5, rank_correlation=1.0)]
    )
    assert "impossible" not in unknown
    assert "slope 2, R² 0.5, rank correlation 1" in unknown


def test_one_probe_is_shown_as_a_table_and_as_json(results: Path) -> None:
    code, out, _ = running.cli("inspect", results, "--probe", "error_budget")
    assert code == 0
    for word in (
        "linear",
        "diagonal",
        "off diagonal",
        "ggn to hessian",
        "higher order",
        "sampling",
        "generalisation",
    ):
        assert word in out
    assert "Networks" not in out
    code, out, _ = running.cli("inspect", results, "--probe", "error_budget", "--json")
    assert json.loads(out) == pk.open(results).summary["probes"]["error_budget"]
    code, out, _ = running.cli("inspect", results, "--probe", "far")
    assert code == 0
    assert "radius 2" in out
    assert "there are error_budget, far, line" in running.refused("inspect", results, "--probe", "radius")


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
@pytest.mark.parametrize(
    ("label", "says"), [("error_budget", "higher order"), ("far", "left by order 2"), ("run", "")]
)
def test_each_figure_is_drawn(label: str, says: str, suffix: str, results: Path, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{suffix}"
    code, out, _ = running.cli("inspect", results, "--plot", path, "--figure", label)
    assert code == 0
    assert f"Drawn into {path}" in out
    content = path.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix])
    if suffix == "svg":
        assert says in content.decode()
        assert "(nats)" in content.decode() or label == "run"


def test_a_figure_that_there_is_not_is_refused_with_those_that_there_are(
    results: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    said = running.refused("inspect", results, "--plot", picture, "--figure", "radius")
    assert "'radius' is not a probe of this run" in said
    assert "give both" in running.refused("inspect", results, "--figure", "far")
    assert not picture.exists()


class Rows:
    """Results of which only the summary is asked for."""

    def __init__(self, rows: list[dict[str, Any]], attempts: list[dict[str, Any]]) -> None:
        steps = [
            {"step": i + 1, "sparsity": 0.3 * (i + 1), "delta_loss": r["measured"]}
            for i, r in enumerate(rows)
        ]
        spec = {"loss": {"name": "mse"}}
        self.summary = {"spec": spec, "steps": steps, "attempts": attempts, "probes": {"b": {"steps": rows}}}


def budget(measured: float, predicted: float | None, **parts: float | None) -> dict[str, Any]:
    names = ("linear", "diagonal", "off_diagonal", "ggn_to_hessian", "higher_order")
    found = dict.fromkeys(names, 0.1) | parts
    return {
        "measured": measured,
        "predicted_delta_loss": predicted,
        "parts": found,
        "impossible": predicted == -9.0,
    }


def drawn(rows: list[dict[str, Any]], attempts: list[dict[str, Any]]) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure()
    numbered = [{"step": i + 1, **r} for i, r in enumerate(rows)]
    found: Any = Rows(numbered, attempts)
    probe: Any = pk.PluginManager().get("probe", "error_budget")
    probe.draw(found, "b", figure)
    figure.canvas.draw()
    plt.close(figure)
    return figure


def test_attempts_taken_back_are_hollow_and_impossible_predictions_crossed() -> None:
    gone = {"accepted": False, "predicted_delta_loss": 0.2, "delta_loss": 0.9}
    stayed = {"accepted": True, "predicted_delta_loss": 0.1, "delta_loss": 0.1}
    figure = drawn([budget(0.1, 0.1), budget(0.4, -9.0)], [gone, stayed])
    lines = {line.get_label(): line for line in figure.axes[1].lines}
    hollow = lines["attempts taken back"]
    assert hollow.get_fillstyle() == "none"
    assert (hollow.get_xdata().tolist(), hollow.get_ydata().tolist()) == ([0.2], [0.9])
    assert lines["predicted below any loss"].get_marker() == "x"
    assert lines["steps"].get_fillstyle() == "full"


@pytest.mark.parametrize(
    "rows",
    [
        [budget(0.1, 0.2)],
        [budget(0.1, None), budget(0.2, None)],
        [budget(1e-9, 1e-8), budget(1e-6, -1e-7), budget(3e5, 1e-3, linear=-2e5)],
        [budget(0.1, 0.1, diagonal=None, off_diagonal=None), budget(-0.1, 0.0)],
        [budget(0.0, 0.0, **dict.fromkeys(["linear", "diagonal"], 0.0))],
    ],
    ids=["one", "no_prediction", "huge_ranges", "missing", "zeros"],
)
def test_a_picture_survives_what_data_do(rows: list[dict[str, Any]]) -> None:
    figure = drawn(rows, [])
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    parts = [value or 0.0 for r in rows for value in r["parts"].values()]
    assert sum(heights) == pytest.approx(sum(parts))
    for axis in figure.axes:
        assert axis.get_xlabel()
        assert "(loss)" in axis.get_ylabel()


@pytest.mark.parametrize(
    "change",
    [
        {"parts": 3},
        {"parts": {"linear": "high", "diagonal": 1.0}},
        {"calibration": None},
        {"sampling": []},
        {"reasons": 1},
    ],
    ids=["no_parts", "a_text", "no_calibration", "a_list", "reasons"],
)
def test_what_only_looks_like_a_budget_is_shown_as_any_probe(change: dict[str, Any]) -> None:
    whole = (
        budget(0.1, 0.2) | row({"linear": 0.1, "diagonal": 0.2}) | {"sampling": None, "generalisation": None}
    )
    assert is_budget([whole])
    assert not is_budget([whole, whole | change])
