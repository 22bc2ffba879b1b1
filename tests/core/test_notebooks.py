"""What notebooks show: the numbers of ``prunekit inspect``, in HTML in which nothing acts, and one line for progress."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import h5py
import pytest
import running
import torch

import prunekit as pk
from prunekit.records import Attempt, StepRecord
from prunekit.reports.notebook import of_pruning, page, table
from prunekit.reports.notebook_progress import NotebookProgress
from prunekit.reports.plain_table import PlainTable
from prunekit.reports.words import ordinal
from prunekit.results import storing
from prunekit_cli import console
from prunekit_cli import overview as on_a_terminal

NASTY = "</td><script>alert(1)</script>\u202e<b>&amp;\x1b[2J"


class Parsed(HTMLParser):
    """Tags that are balanced, cells of tables, and lines."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.lines: list[str] = []
        self.captions: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "p":
            self.lines.append("")
        if tag == "caption":
            self.captions.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside in ("td", "th"):
            self.rows[-1][-1] += data
        elif inside == "p":
            self.lines[-1] += data
        elif inside == "caption":
            self.captions[-1] += data


def harmless(html: str) -> Parsed:
    """Nothing but tables and lines, which fit a light notebook and a dark one."""
    parsed = Parsed(html)
    assert parsed.tags <= {"div", "p", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert {name for name, _ in parsed.attributes} <= {"style"}
    styles = {value for name, value in parsed.attributes}
    assert not any(
        re.search(r"color|background|#|url|black|white(?!-space)", value or "") for value in styles
    )
    return parsed


class Stopping(pk.Listener):
    """Ends a run after its first epoch."""

    def epoch(self, phase: str, row: Any) -> None:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results that are complete, that adapt, that have failed, that were interrupted, and that go on."""
    folder = tmp_path_factory.mktemp("results")
    running.write_data(folder / "data.npz")
    pk.run(running.mapping(folder, probes=["line", "error_budget"]), folder / "whole.h5").close()
    adaptive = running.mapping(folder, probes=None, finetune=None)
    adaptive["prune"]["scheduler"] = {
        "name": "trust_region",
        "sparsity": 0.7,
        "tolerance": {"relative": 0, "absolute": 0.02},
    }
    pk.run(adaptive, folder / "adaptive.h5").close()
    failing = running.mapping(folder, probes=None)
    failing["train"]["optimizer"]["lr"] = 1e38
    with pytest.raises(pk.RunError):
        pk.run(failing, folder / "failed.h5")
    with pytest.raises(KeyboardInterrupt):
        pk.run(running.mapping(folder), folder / "interrupted.h5", listener=Stopping())
    path = folder / "running.h5"
    path.write_bytes((folder / "whole.h5").read_bytes())
    with h5py.File(path, "r+", libver=storing.LIBVER) as file:
        kind = file.attrs.get_id("status").dtype
        file.attrs.modify("status", storing.attribute("running").astype(kind))
        spec = storing.read_json(file, "spec/resolved")
        storing.replace_text(file, "spec/resolved", json.dumps(spec | {"name": NASTY}))
        del file["weights/finetuned"], file["metrics/finetuned"]
    return folder


def cells(parts: Any) -> list[list[str]]:
    """What a terminal's tables hold."""
    found = []
    for part in parts:
        if not isinstance(part, str):
            columns = [[str(column.header), *map(str, column.cells)] for column in part.columns]
            found += [list(row) for row in zip(*columns, strict=True)]
    return found


@pytest.mark.parametrize("name", ["whole", "adaptive", "failed", "interrupted", "running"])
def test_a_notebook_shows_the_tables_of_inspect(name: str, folder: Path) -> None:
    with pk.open(folder / f"{name}.h5") as results:
        parsed = harmless(results._repr_html_())
        terminal = list(on_a_terminal.overview(results))
        assert parsed.rows == cells(terminal)
        assert f"; {results.summary['status']}" in parsed.lines[0]
        assert parsed.captions == [str(part.title) for part in terminal if not isinstance(part, str)]
        assert not any("--" in text for text in parsed.lines + parsed.captions)


def test_the_numbers_are_those_of_the_summary(folder: Path) -> None:
    with pk.open(folder / "whole.h5") as results:
        step, pruned = results.summary["steps"][-1], results.summary["pruned"]
        text = results._repr_html_()
    for value in (step["delta_loss"], step["predicted_delta_loss"], pruned["test_loss"]):
        assert f">{value:.4f}<" in text
    assert f">{100 * pruned['test_error']:.2f} %<" in text


def test_a_failed_run_says_why_and_an_empty_one_that_nothing_is_there(folder: Path) -> None:
    with pk.open(folder / "failed.h5") as results:
        lines = harmless(results._repr_html_()).lines
    assert "failed" in lines[0]
    assert "loss" in lines[0]
    assert "Nothing measured yet." in lines


def test_nothing_in_a_name_acts(folder: Path) -> None:
    with pk.open(folder / "running.h5") as results:
        text = results._repr_html_()
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    hostile = table(PlainTable(NASTY, [NASTY], [[NASTY]]))
    assert hostile.count("&lt;script&gt;") == 3
    assert harmless(page([NASTY])).lines


def test_a_file_that_was_closed_shows_what_had_been_read(folder: Path) -> None:
    with pk.open(folder / "whole.h5") as results:
        before = harmless(results._repr_html_())
    after = harmless(results._repr_html_())
    assert after.rows == before.rows
    assert after.lines[-1].endswith("has been closed")


def test_attempts_that_were_taken_back_have_a_table(folder: Path) -> None:
    with pk.open(folder / "adaptive.h5") as results:
        gone = [attempt for attempt in results.summary["attempts"] if not attempt["accepted"]]
        parsed = harmless(results._repr_html_())
    assert gone
    assert any(caption.startswith(f"Attempts taken back ({len(gone)} of") for caption in parsed.captions)


@pytest.fixture(scope="module")
def pruning() -> Any:
    torch.manual_seed(0)
    batches = [(torch.randn(40, 6), torch.randint(3, (40,)))]
    return pk.prune(torch.nn.Linear(6, 3), batches, "qm", sparsity=0.5, steps=3, probes=["error_budget"])


def test_a_pruning_is_shown_with_its_steps_and_probes(pruning: Any) -> None:
    parsed = harmless(pruning._repr_html_())
    assert parsed.lines[0] == "50.000 % of 18 prunable weights are gone; 9 are kept."
    assert parsed.rows[0] == [
        *("step", "sparsity", "kept", "predicted Δloss", "measured Δloss", "seconds")
    ]  # no column of a split that nobody has measured
    assert [row[4] for row in parsed.rows[1:]] == [f"{step.delta_loss:.4f}" for step in pruning.steps]
    assert any(line.startswith("error_budget: the biggest part is") for line in parsed.lines)


def test_steps_are_shown_together_alone_and_in_slices(pruning: Any) -> None:
    assert len(harmless(pruning.steps._repr_html_()).rows) == 4
    assert len(harmless(pruning.steps[1:]._repr_html_()).rows) == 3
    parsed = harmless(pruning.steps[-1]._repr_html_())
    assert parsed.captions[0] == "Step 3: 50.000 % sparse, 9 weights kept"
    assert ["measured Δloss", f"{pruning.steps[-1].delta_loss:.4f}"] in parsed.rows
    assert ["weight", "50.000 %"] in parsed.rows
    assert harmless(pruning.steps[:0]._repr_html_()).lines == ["No steps."]


def test_steps_are_a_list_of_records_all_the_same(pruning: Any) -> None:
    assert isinstance(pruning.steps, list)
    assert all(isinstance(step, StepRecord) for step in pruning.steps)
    again = pickle.loads(pickle.dumps(pruning.steps))
    assert again == pruning.steps
    assert [*map(dict, again)] == [*map(dict, pruning.steps)]
    assert pruning.steps[0].layers == {"weight": pruning.steps[0].sparsity}


def test_a_pruning_without_steps_says_so_and_shows_what_it_has() -> None:
    gone = Attempt(1, pk.Target(0.5), 0.5, 9, 0.0, 0.25, float("nan"))
    rest = {"stopped": "the tolerance", "warnings": [NASTY], "probes": {}}
    parsed = harmless(of_pruning([], [gone], rest))
    assert parsed.lines[:2] == ["Nothing has been pruned.", "Pruning stopped by the tolerance"]
    assert parsed.lines[2].startswith("Warning: </td><script>")
    assert parsed.captions == ["Attempts taken back (1 of 1)"]
    assert parsed.rows[-1] == ["1", "50.000 %", "0.0000", "0.2500", "nan"]


def test_a_sweep_is_shown_as_inspect_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from prunekit_cli.sweep import show

    spec = running.write_spec(tmp_path)
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"base: {spec.name}\nparameters:\n  prune.criterion.lambda: {{values: [0.0, 0.1]}}\n")
    code, _, error = running.cli("sweep", sweep, "--workers", "1")
    assert code == 0, error
    found = pk.open_sweep(tmp_path / "sweep")
    parsed = harmless(found._repr_html_())
    assert len(parsed.rows) == 3
    capsys.readouterr()
    show(found)
    shown = capsys.readouterr().out
    for cell in parsed.rows[1]:
        assert cell in shown


def test_a_figure_is_given_to_a_notebook(folder: Path) -> None:
    with pk.open(folder / "whole.h5") as results:
        picture = results.plot(figure="error_budget")
        again = results.plot(figure="error_budget")
        with pytest.raises(pk.SpecError, match="columns 3"):
            results.plot(columns=3)
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert picture._repr_png_() == again._repr_png_()
    assert repr(picture) == "<picture of small: mlp on npz, qm>"


def test_importing_prunekit_loads_nothing_of_it() -> None:
    code = "import sys, prunekit; sys.exit(any('notebook' in m or m == 'IPython' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("count", "said"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (12, "12th"), (23, "23rd")]
)
def test_places(count: int, said: str) -> None:
    assert ordinal(count) == said


@dataclass
class Kernel:
    """IPython with a kernel, as far as displays go."""

    shown: list[dict[str, str]] = field(default_factory=list)
    made: int = 0

    def display(self, bundle: dict[str, str], raw: bool, display_id: bool) -> Kernel:
        assert raw
        assert display_id
        self.made += 1
        self.shown.append(bundle)
        return self

    def update(self, bundle: dict[str, str], raw: bool) -> None:
        assert raw
        self.shown.append(bundle)


def notebook(monkeypatch: pytest.MonkeyPatch, kernel: object) -> Kernel:
    """Make this process look like a kernel's, or with ``None`` like IPython in a terminal."""
    found = Kernel()
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    vars(ipython)["get_ipython"] = lambda: SimpleNamespace(kernel=kernel)
    vars(display)["display"] = found.display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return found


def test_a_run_in_a_notebook_has_one_output_with_a_line_for_each_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    kernel = notebook(monkeypatch, object())
    running.write_data(tmp_path / "data.npz")
    pk.run(running.mapping(tmp_path), tmp_path / "out.h5").close()
    assert kernel.made == 1
    lines = kernel.shown[-1]["text/plain"].splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "train 3/3",
        "prune 3/3",
        "fine-tune 2/2",
        "probes 1/1",
    ]
    assert re.search(r"sparsity 70\.\d{3} %  train loss \d\.\d{4}  Δloss -?\d\.\d{4} \(predicted", lines[1])
    html = kernel.shown[-1]["text/html"]
    assert html.count('<progress value="3" max="3">') == 2
    assert capfd.readouterr().out == ""


def test_pruning_in_a_notebook_is_followed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = notebook(monkeypatch, object())
    batches = [(torch.randn(40, 6), torch.randint(3, (40,)))]
    scheduler = {"name": "trust_region", "tolerance": {"relative": 0, "absolute": 1e9}}
    pk.prune(torch.nn.Linear(6, 3), batches, "qm", sparsity=0.5, steps=3)
    assert kernel.shown[-1]["text/plain"].startswith("prune 3/3  sparsity 50.000 %")
    pk.prune(torch.nn.Linear(6, 3), batches, "qm", sparsity=0.5, scheduler=scheduler)
    assert re.match(r"prune \d  sparsity 50\.000 %", kernel.shown[-1]["text/plain"])
    assert kernel.made == 2


def test_what_fails_leaves_its_progress_and_a_silent_listener_shows_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = notebook(monkeypatch, object())
    running.write_data(tmp_path / "data.npz")
    pk.run(running.mapping(tmp_path), tmp_path / "out.h5", listener=pk.Listener()).close()
    assert kernel.shown == []
    failing = running.mapping(tmp_path)
    failing["train"]["optimizer"]["lr"] = 1e38
    with pytest.raises(pk.RunError):
        pk.run(failing, tmp_path / "failed.h5")
    assert kernel.shown[-1]["text/plain"].startswith("train ")


@pytest.mark.parametrize("kind", ["script", "terminal", "another process"])
def test_elsewhere_nothing_is_shown(
    kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    kernel = Kernel()
    if kind != "script":
        kernel = notebook(monkeypatch, None if kind == "terminal" else object())
    if kind == "another process":
        monkeypatch.setattr("prunekit.reports.notebook_progress.speaks", lambda: False)
    batches = [(torch.randn(40, 6), torch.randint(3, (40,)))]
    pk.prune(torch.nn.Linear(6, 3), batches, "qm", sparsity=0.5, steps=3)
    assert kernel.shown == []
    assert capfd.readouterr() == ("", "")


def test_progress_shows_no_more_than_a_few_pictures_a_second_and_always_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("prunekit.reports.notebook_progress.time.monotonic", lambda: now[0])
    shown: list[str] = []
    progress = NotebookProgress(lambda html, text: shown.append(text))
    progress.phase("train", 1000, 0)
    for i in range(1000):
        now[0] += 0.001
        progress.epoch("dense", {"running_loss": float(i)})
    assert len(shown) <= 1 / 0.2 + 2
    assert shown[-1].startswith("train 1000/1000")
    progress.phase("prune", None, 4)
    progress.attempt(Attempt(1, pk.Target(0.5), 0.5, 9, 0.0, 0.25, 0.5))
    progress.piece("<b>", 1, 2)
    progress.finish()
    assert shown[-1].splitlines()[1] == "prune 4  <b> 1/2  1 taken back"


def test_names_do_not_act_in_progress() -> None:
    shown: list[str] = []
    progress = NotebookProgress(lambda html, text: shown.append(html))
    progress.phase("probes", 1, 0)
    progress.probe(NASTY)
    assert "<script" not in shown[-1]
    assert "\x1b" not in shown[-1]


def test_the_terminals_tables_are_made_of_the_same_rows(folder: Path) -> None:
    with pk.open(folder / "whole.h5") as results:
        for part in on_a_terminal.layers(results):
            assert isinstance(part, str | console.Fitting)
