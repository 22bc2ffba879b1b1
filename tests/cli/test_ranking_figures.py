"""Pictures of the oracle, of stability and of layers: drawn from runs, and whatever data do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running

import prunekit as pk

PROBES: list[dict[str, Any]] = [
    {"name": "oracle", "resamples": 10, "moments": ["dense"]},
    {"name": "oracle", "label": "often", "weights": 60, "resamples": 10, "moments": ["dense", "step"]},
    {"name": "stability", "examples": [5, 20], "repeats": 3, "moments": ["dense", "step"]},
    {"name": "layers"},
]
SAYS = {
    "oracle": "the oracle itself",
    "often": "after step 3",
    "stability": "two random masks",
    "layers": "kept and on a path",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rankings")
    running.write_data(folder / "data.npz")
    pk.run(running.mapping(folder, probes=PROBES), folder / "out.h5").close()
    return folder / "out.h5"


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("label", SAYS)
def test_each_figure_is_drawn(label: str, suffix: str, results: Path, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{suffix}"
    code, _, _ = running.cli("inspect", results, "--plot", path, "--figure", label)
    assert code == 0
    if suffix == "svg":
        assert SAYS[label] in path.read_text()


class Held:
    """Results of which a picture asks for the summary and the arrays."""

    def __init__(self, label: str, moments: dict[str, tuple[Any, dict[str, dict[str, Any]]]]) -> None:
        said = {name: summary for name, (summary, _) in moments.items() if name not in ("step", "end")}
        said |= moments["end"][0] if "end" in moments else {}
        if "step" in moments:
            said["steps"] = [{"step": i + 1, **row} for i, row in enumerate(moments["step"][0])]
        count = len(said.get("steps", []))
        steps = [{"step": i + 1, "sparsity": 1 - 0.5 ** (i + 1)} for i in range(count)]
        spec = {"loss": {"name": "mse"}}
        self.summary = {"spec": spec, "steps": steps, "probes": {label: said}}
        self._moments = moments

    def moments(self, label: str) -> dict[str, int]:
        return dict.fromkeys(self._moments, 1)

    def probe(self, label: str, moment: str) -> Any:
        arrays = self._moments[moment][1]
        return {g: {k: np.asarray(v) for k, v in some.items()} for g, some in arrays.items()}


def drawn(name: str, held: Any, style: str | None = None) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    probe: Any = pk.PluginManager().get("probe", name)
    with plt.style.context(style or "default"):
        figure = plt.figure(layout="constrained")
        probe.draw(held, "p", figure)
        figure.canvas.draw()
        plt.close(figure)
    for axis in figure.axes:
        assert axis.get_xlabel()
        assert axis.get_title()
    return figure


def oracle(
    changes: list[float], saliency: list[float], value: float
) -> tuple[Any, dict[str, dict[str, Any]]]:
    ends = {f"{name}{end}": [value] for name in ("spearman", "kendall") for end in ("", "_low", "_high")}
    arrays = {"weights": {"delta_loss": changes}, "criteria": {"saliency": [saliency], **ends}}
    return {"criteria": {"_odd $name$": {}}}, arrays


NAN = float("nan")


@pytest.mark.parametrize("style", [None, "dark_background"])
@pytest.mark.parametrize(
    "found",
    [
        oracle([0.1], [0.2], NAN),
        oracle([NAN, NAN], [NAN, NAN], NAN),
        oracle([1e-30, -1e30, 0.0, 1.0] * 20, [1e-9, 1e9, 0.0, 1.0] * 20, -0.9),
        oracle([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], NAN),
    ],
    ids=["one", "nothing", "huge_ranges", "zeros"],
)
def test_a_picture_of_the_oracle_survives_what_data_do(found: Any, style: str | None) -> None:
    drawn("oracle", Held("p", {"dense": found}), style)
    summary, arrays = found
    rows = {g: {k: [v, v] for k, v in some.items()} for g, some in arrays.items()}
    figure = drawn("oracle", Held("p", {"step": ([summary, summary], rows)}), style)
    assert "sparsity" in figure.axes[0].get_xlabel()


def stability(
    sizes: list[float], value: float, examples: float | None
) -> tuple[Any, dict[str, dict[str, Any]]]:
    column = [NAN if size != size else value for size in sizes]
    names = ("overlap", "spearman")
    arrays = {f"{name}{end}": column for name in names for end in ("", "_low", "_high")}
    summary = {
        "criterion": "qm($x)",
        "chance": {"overlap": None if value != value else 0.1},
        "enough": {"overlap": 0.9, "examples": examples, "low": None, "high": None},
    }
    return summary, {"sizes": {"examples": sizes, **arrays}}


@pytest.mark.parametrize(
    "found",
    [stability([10.0], 0.5, 10.0), stability([NAN, NAN], NAN, None), stability([1.0, 1e9, NAN], -0.2, 1e7)],
    ids=["one", "nothing", "huge_ranges"],
)
def test_a_picture_of_stability_survives_what_data_do(found: Any) -> None:
    drawn("stability", Held("p", {"dense": found}))
    summary, arrays = found
    rows = {g: {k: [v] * 9 for k, v in some.items()} for g, some in arrays.items()}
    figure = drawn("stability", Held("p", {"dense": found, "step": ([summary] * 9, rows)}))
    assert len([line for line in figure.axes[1].lines if len(line.get_xdata()) > 0]) == 6


def layers(
    count: int, sparsity: float, effective: float, saliency: float
) -> tuple[Any, dict[str, dict[str, Any]]]:
    units = ("units_without_input", "units_without_output", "dead_units")
    arrays: dict[str, Any] = {
        "sparsity": [sparsity] * count,
        "effective_sparsity": [effective] * count,
        "units": [4.0] * count,
        "saliency": [[saliency * 10**i for i in range(5)]] * count,
        **dict.fromkeys(units, [NAN if effective != effective else 1.0] * count),
    }
    summary = {
        "sparsity": sparsity,
        "effective_sparsity": None if effective != effective else effective,
        "layers": {f"layer $%{i}.weight": {} for i in range(count)},
    }
    return summary, {"layers": arrays}


@pytest.mark.parametrize(
    "found",
    [
        layers(1, 0.0, 0.0, 1.0),
        layers(3, 1.0, 1.0, NAN),
        layers(3, 0.5, NAN, 1e-20),
        layers(120, 0.999, 0.9999, 1e9),
    ],
    ids=["one", "collapsed", "unknown", "many"],
)
def test_a_picture_of_layers_survives_what_data_do(found: Any) -> None:
    figure = drawn("layers", Held("p", {"end": found}))
    assert len(figure.axes) == 3
    assert len(figure.axes[0].get_xticks()) <= 24
