"""The page of a run, in a browser: it draws what the file says, fetches nothing, and nothing in a file acts in it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import h5py
import numpy as np
import pytest
import running
from matplotlib.figure import Figure

import prunekit as pk
from prunekit.reports.page.plotly import converted
from prunekit.results import storing

needs_browser = pytest.mark.skipif(browser.PROGRAM is None, reason=browser.MISSING)
PROBES: list[Any] = [
    "error_budget",
    "radius",
    "line",
    "layers",
    {"name": "plane", "points": 5},
    {"name": "spectrum", "iterations": 10},
    {"name": "oracle", "resamples": 10, "moments": ["dense", "pruned"]},
    {"name": "stability", "examples": [5, 20], "repeats": 3},
    {"name": "certificate", "label": "far"},
]
NASTY = "</script><script>alert(1)</script>\u202e<b>&amp;$x^$\x1b[2J"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of every kind, and their pages."""
    folder = tmp_path_factory.mktemp("pages")
    running.write_data(folder / "data.npz")
    spec = running.mapping(folder, probes=[p for p in PROBES if p != PROBES[-1]])
    pk.run(spec, folder / "whole.h5").close()
    joint = running.mapping(folder, probes=[PROBES[-1]], finetune=None)
    joint["prune"]["criterion"] = "combinatorial"
    pk.run(joint, folder / "joint.h5").close()
    failing = running.mapping(folder, probes=None)
    failing["train"]["optimizer"]["lr"] = 1e38
    with pytest.raises(pk.RunError):
        pk.run(failing, folder / "failed.h5")
    for name in ("whole", "joint", "failed"):
        with pk.open(folder / f"{name}.h5") as results:
            results.to_html(folder / f"{name}.html")
    running_one = folder / "running.h5"
    running_one.write_bytes((folder / "whole.h5").read_bytes())
    with h5py.File(running_one, "r+", libver=storing.LIBVER) as file:
        file.attrs.modify("status", storing.attribute("running").astype(file.attrs.get_id("status").dtype))
        spec = storing.read_json(file, "spec/resolved")
        storing.replace_text(file, "spec/resolved", json.dumps(spec | {"name": NASTY}))
        del file["weights/finetuned"], file["metrics/finetuned"]
    with pk.open(running_one) as results:
        results.to_html(folder / "running.html")
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    with browser.Browser() as one:
        yield one


def until(chromium: browser.Browser, condition: str) -> None:
    """Wait for something to become true in the page."""
    look = (
        f"const look = () => {condition} ? done(true) : setTimeout(look, 20); look(); setTimeout(done, 20000)"
    )
    assert chromium.run(f"new Promise(done => {{ {look} }})"), condition


def embedded(page: Path) -> dict[str, Any]:
    (text,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.S
    )
    found: dict[str, Any] = json.loads(text)
    return found


def decoded(array: dict[str, Any]) -> list[float]:
    assert array["dtype"] == "f8"
    return np.frombuffer(b64decode(array["bdata"]), "<f8").tolist()


def curve(page: Path, figure: str, panel: int, name: str) -> list[float]:
    (trace,) = [t for t in embedded(page)["figures"][figure][panel]["data"] if t["name"] == name]
    return decoded(trace["y"])


@needs_browser
@pytest.mark.parametrize("name", ["whole", "joint", "failed", "running"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_figure_is_drawn_and_nothing_is_fetched_or_complained_of(
    name: str, dark: bool, folder: Path, chromium: browser.Browser
) -> None:
    page = folder / f"{name}.html"
    chromium.open(page, "#all", dark)
    figures = embedded(page)["figures"]
    panels = {f"{key}-{i}": panel for key, found in figures.items() for i, panel in enumerate(found)}
    until(chromium, f"document.querySelectorAll('.plot .main-svg').length >= 3 * {len(panels)}")
    for key, panel in panels.items():
        for kind, parts in {
            "scatter": ".scatterlayer .trace",
            "bar": ".barlayer .trace",
            "contour": ".contour",
        }.items():
            wanted = sum(trace["type"] == kind for trace in panel["data"])
            assert chromium.run(f"document.querySelectorAll('#{re.escape(key)} {parts}').length") == wanted, (
                key,
                kind,
            )
    if name == "whole":
        assert len(panels) > 15
    assert chromium.said == []
    assert chromium.asked == [page.resolve().as_uri()]


@needs_browser
def test_clicking_a_layer_shows_it_and_its_address_leads_back_to_it(
    folder: Path, chromium: browser.Browser
) -> None:
    page = folder / "whole.html"
    with pk.open(folder / "whole.h5") as results:
        steps = results.summary["steps"]
        name = list(steps[0]["layers"])[1]
        found = results.summary["probes"]["layers"]["steps"][-1]["layers"][name]
    chromium.open(page)
    assert chromium.run("document.getElementById('layer').textContent") == ""
    chromium.run(f"document.querySelector('button[data-layer={json.dumps(name)}]').click()")
    shown = "document.getElementById('layer').textContent"
    assert str(chromium.run(shown)).startswith(f"{name}, ")
    assert f"Of {found['units']} units, {found['units_without_input']} have no input" in chromium.run(shown)
    assert chromium.run("document.querySelector('button[aria-pressed=true]').textContent") == name
    drawn = chromium.run("Array.from(document.querySelector('#layer .plot')._fullData[0].y)")
    assert drawn == [step["layers"][name] for step in steps]
    address = chromium.run("location.hash")
    chromium.open(page, address)
    assert str(chromium.run(shown)).startswith(f"{name}, ")
    assert chromium.said == []


@needs_browser
def test_figures_are_there_once_a_page_has_loaded_and_a_phone_scrolls_nothing_sideways(
    folder: Path, chromium: browser.Browser
) -> None:
    chromium.open(folder / "whole.html", width=390)
    until(chromium, "document.querySelectorAll('.main-svg').length > 0")
    assert chromium.run("document.documentElement.scrollWidth") <= 390


def test_figures_hold_the_numbers_that_json_shows(folder: Path) -> None:
    code, out, _ = running.cli("inspect", folder / "whole.h5", "--json")
    assert code == 0
    summary = json.loads(out)
    steps, page = summary["steps"], folder / "whole.html"
    for word, split in (("training", "train"), ("validation", "valid"), ("test", "test")):
        losses = [summary["dense"][f"{split}_loss"], *(s[f"{split}_loss"] for s in steps)]
        assert curve(page, "figure-loss", 0, word) == losses
    assert curve(page, "figure-honesty", 0, "measured") == [s["delta_loss"] for s in steps]
    assert curve(page, "figure-honesty", 0, "predicted") == [s["predicted_delta_loss"] for s in steps]
    budget = summary["probes"]["error_budget"]["steps"]
    drawn = np.array(curve(page, "figure-probe-error_budget", 0, "off-diagonal"))
    assert np.allclose(drawn, [row["parts"]["off_diagonal"] for row in budget], rtol=1e-12, atol=1e-18)
    assert curve(page, "figure-probe-radius", 0, "order 1") == [
        row["radius_1"] for row in summary["probes"]["radius"]["steps"]
    ]
    layers = embedded(page)["layers"]
    for name, values in zip(layers["names"], layers["sparsity"], strict=True):
        assert decoded(values) == [s["layers"][name] for s in steps]
    with pk.open(folder / "whole.h5") as results:
        plane = results.probe("plane")["plane"]["train_loss"]
    (contour,) = [
        t for t in embedded(page)["figures"]["figure-probe-plane"][0]["data"] if t["type"] == "contour"
    ]
    assert decoded(contour["customdata"]) == plane.astype(float).ravel().tolist()
    assert contour["customdata"]["shape"] == "5, 5"


def test_nothing_in_a_file_acts_in_the_page(folder: Path) -> None:
    text = (folder / "running.html").read_text("utf-8")
    assert "<script>alert" not in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "script-src 'unsafe-inline'" not in policy
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', outside)


def test_the_page_says_in_words_how_it_stands(folder: Path) -> None:
    texts = {name: (folder / f"{name}.html").read_text("utf-8") for name in ("whole", "failed", "running")}
    assert "<p>The run has failed, after 0 steps: " in texts["failed"]
    assert "<p>Nothing has been pruned.</p>" in texts["failed"]
    assert "<p>The run is in progress, after 3 steps.</p>" in texts["running"]
    with pk.open(folder / "whole.h5") as results:
        last = results.summary["steps"][-1]
    assert f"{last['remaining']} are kept." in texts["whole"]
    assert "is the biggest part (" in texts["whole"]
    assert "<noscript>" in texts["whole"]


def test_a_page_is_made_without_torch_and_is_small(folder: Path) -> None:
    code = (
        "import sys, prunekit\n"
        f"page = prunekit.open({str(folder / 'whole.h5')!r}).to_html()\n"
        "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules or len(page) > 1.5e6 + 3e6)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_only_a_page_of_ours_is_replaced(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert running.cli("inspect", folder / "whole.h5", "--html", page)[0] == 0
    first = page.read_bytes()
    assert "use --overwrite" in running.refused("inspect", folder / "whole.h5", "--html", page)
    assert running.cli("inspect", folder / "whole.h5", "--html", page, "--overwrite")[0] == 0
    assert page.read_bytes() == first  # one file gives one page
    page.write_text("<html>mine</html>")
    assert "not a page that prunekit wrote" in running.refused(
        "inspect", folder / "whole.h5", "--html", page, "--overwrite"
    )
    assert page.read_text() == "<html>mine</html>"
    assert ".html" in running.refused("inspect", folder / "whole.h5", "--html", tmp_path / "page.txt")
    assert running.refused("inspect", folder / "whole.h5", "--html", tmp_path / "no" / "page.html")


@needs_browser
def test_runs_side_by_side_have_a_page(folder: Path, tmp_path: Path, chromium: browser.Browser) -> None:
    page = tmp_path / "both.html"
    files = folder / "whole.h5", folder / "joint.h5"
    assert running.cli("compare", *files, "--anyway", "--html", page)[0] == 0
    chromium.open(page, "#all")
    until(chromium, "document.querySelectorAll('.js-plotly-plot').length == 2")
    assert "prune.criterion.name" in chromium.run("document.body.textContent")
    assert chromium.said == []


def test_what_a_drawing_function_may_use_is_converted_and_an_image_is_embedded(tmp_path: Path) -> None:
    def everything(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        left.bar([0, 1], [2.0, 3.0], bottom=[1.0, 0.0], label="bars", hatch="//")
        left.errorbar([0, 1], [1.0, 2.0], yerr=[[0.5, 0.25], [1.0, 0.125]], fmt="o", label="errors")
        left.axhspan(1, 2, alpha=0.5)
        left.axvline(0.5, linestyle="--")
        left.legend()
        right.scatter([1, 2], [3.0, 4.0], label="_hidden")
        right.vlines([1, 2], [0, 0], [1, 1])
        right.fill_between([1, 2], [0, 0], [1, 2])
        right.text(0.5, 0.5, r"a <b> $\Delta$ \$5", transform=right.transAxes)
        right.set_yscale("symlog", linthresh=1)
        right.set_title("1 < 2")

    made = converted(everything)
    assert made is not None
    left, right = made
    assert [trace["type"] for trace in left["data"]] == ["bar", "scatter"]
    assert [trace["showlegend"] for trace in left["data"]] == [True, True]
    bars, errors = left["data"]
    assert (decoded(bars["base"]), decoded(bars["y"])) == ([1.0, 0.0], [2.0, 3.0])
    assert bars["marker"]["pattern"]["shape"] == "/"
    assert decoded(errors["error_y"]["array"]) == [1.0, 0.125]
    assert decoded(errors["error_y"]["arrayminus"]) == [0.5, 0.25]
    assert [shape["type"] for shape in left["layout"]["shapes"]] == ["rect", "line"]
    assert [trace["showlegend"] for trace in right["data"]] == [False] * 3
    assert right["layout"]["annotations"][0]["text"] == "a &lt;b&gt; Δ $5"
    assert right["layout"]["title"]["text"] == "1 &lt; 2"
    assert right["layout"]["yaxis"]["ticktext"]

    def lying(figure: Figure) -> None:
        figure.subplots().barh([0, 1], [2.0, 3.0], left=[1.0, 0.0])

    (panel,) = converted(lying) or []
    assert panel["data"][0]["orientation"] == "h"
    assert (decoded(panel["data"][0]["x"]), decoded(panel["data"][0]["base"])) == ([2.0, 3.0], [1.0, 0.0])

    def picture(figure: Figure) -> None:
        figure.subplots().imshow([[1, 2]])

    assert converted(picture) is None
