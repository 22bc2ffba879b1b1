"""Tables as LaTeX, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import running

import prunekit as pk
from prunekit_cli.console import table
from prunekit_cli.formats import Format, printed

ODD = table("A_title & more", ["name", "Δloss"], [["fc.0|x_1", "-0.5"], ["50 %", "1,234"], ["–", "–"]])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    running.write_data(folder / "data.npz")
    scheduler = {"name": "exponential", "sparsity": 0.7, "steps": 40}
    prune = {"criterion": "magnitude", "scheduler": scheduler, "examples": 20}
    pk.run(running.mapping(folder, prune=prune, probes=[]), folder / "out.h5").close()
    return folder / "out.h5"


def test_latex_has_nothing_that_acts() -> None:
    assert printed([ODD], Format.latex).splitlines() == [
        "% A_title & more",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"name & $\Delta$loss \\",
        r"\midrule",
        r"fc.0|x\_1 & $-0.5$ \\",
        r"50 \% & 1,234 \\",
        r"-- & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_markdown_keeps_its_columns() -> None:
    assert printed(["no table", ODD], Format.markdown).splitlines() == [
        *("**A_title & more**", "", "| name | Δloss |", "| --- | ---: |"),
        *(r"| fc.0\|x_1 | -0.5 |", "| 50 % | 1,234 |", "| – | – |"),
    ]


def test_csv_has_numbers_as_numbers_and_every_step(results: Path) -> None:
    assert printed([ODD], Format.csv).splitlines() == [
        *("# A_title & more", "name,Δloss", "fc.0|x_1,-0.5", "50 %,1234", ","),
    ]
    code, out, _ = running.cli("inspect", results, "--format", "csv")
    assert code == 0
    text = out.partition("# Steps\n")[2].partition("\n\n")[0]
    rows = list(csv.DictReader(io.StringIO(text)))
    with pk.open(results) as opened:
        steps = opened.summary["steps"]
    assert [int(row["step"]) for row in rows] == [step["step"] for step in steps] == list(range(1, 41))
    for row, step in zip(rows, steps, strict=True):
        assert float(row["train loss"]) == pytest.approx(step["train_loss"], abs=5e-5)
        assert row["predicted Δloss"] == ""


@pytest.mark.parametrize("form", list(Format))
def test_inspect_and_compare_print_tables_and_nothing_else(
    form: Format, results: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.h5"
    other.write_bytes(results.read_bytes())
    for arguments in (["inspect", results, "--layers"], ["compare", results, other]):
        code, out, _ = running.cli(*arguments, "--format", form)
        assert code == 0
        assert "magnitude" not in out.splitlines()[0]
        assert "fc.0.weight" in out
        assert "both" not in out or form is not Format.latex or r"\begin" in out


def test_json_is_no_table(results: Path) -> None:
    assert "--json prints none" in running.refused("inspect", results, "--json", "--format", "csv")
    assert "--json prints none" in running.refused("compare", results, results, "--json", "--format", "csv")
