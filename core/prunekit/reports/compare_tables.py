"""Runs side by side as plain tables, for a screen, a page, or a paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prunekit.records import Plain, Row
from prunekit.reports.compare import Comparison
from prunekit.reports.overlap import Overlap
from prunekit.reports.plain_table import PlainTable
from prunekit.reports.words import number, percent

_SHOWN_LAYERS = 12
_BESIDE = 8  # runs that find room beside each other; more stand one below the other
_PARTS = {
    "linear": "linear",
    "diagonal": "diagonal",
    "off_diagonal": "off-diagonal",
    "ggn_to_hessian": "GGN to Hessian",
    "higher_order": "higher order",
}
_COLUMNS = (
    *(
        "run",
        "steps",
        "sparsity",
        "predicted Δloss",
        "measured Δloss",
        "train Δloss",
        "test error",
        "fine-tuned",
    ),
    *("slope", "R²", "seconds"),
)


def tables(comparison: Comparison) -> Iterator[PlainTable]:
    """The most telling first."""
    runs = comparison.runs
    names = [str(row["name"]) for row in runs]
    for title, differing in (
        ("Not made under one protocol, so the numbers are not comparable", comparison.unlike),
        ("What differs", comparison.differences),
    ):
        if differing:
            lines = [["value", *names], *_values(differing)]
            if len(names) > _BESIDE:
                lines[0][0] = "run"
                lines = [list(line) for line in zip(*lines, strict=True)]
            yield PlainTable(title, lines[0], lines[1:], left=len(lines[0]))
    yield PlainTable(
        "Runs", _COLUMNS, [_row(row) for row in runs], less=("seconds", "R²", "slope", "steps", "train Δloss")
    )
    budgets = [
        [row["name"], *(number(row["budget"][part]) for part in _PARTS)] for row in runs if row["budget"]
    ]
    if budgets:
        yield PlainTable("What the measured changes are made of", ["run", *_PARTS.values()], budgets)
    if comparison.overlaps:
        yield PlainTable(
            "Weights kept by both, of those kept by one at least",
            ["runs", "overlap", "by chance"],
            [[f"{names[a]}, {names[b]}", *_shares(whole)] for a, b, whole, _ in comparison.overlaps],
        )
    if len(comparison.overlaps) == 1:
        ((_, _, _, layers),) = comparison.overlaps
        rows = [[name, *_shares(one)] for name, one in layers.items()]
        more = f" (the first {_SHOWN_LAYERS}; all with --json)" if len(rows) > _SHOWN_LAYERS else ""
        yield PlainTable(f"… layer by layer{more}", ["tensor", "overlap", "by chance"], rows[:_SHOWN_LAYERS])


def _row(row: Row) -> list[str]:
    return [
        row["name"] if row["status"] == "complete" else f"{row['name']} ({row['status']})",
        f"{row['steps']:,}",
        percent(row["sparsity"], 3),
        number(row["predicted_delta_loss"]),
        number(row["delta_loss"]),
        number(row["train_delta_loss"]),
        _last(row["pruned"]),
        _last(row["finetuned"]),
        *(_plain((row["calibration"] or {}).get(key)) for key in ("slope", "r_squared")),
        number(row["seconds"], 2),
    ]


def _last(metrics: Row | None) -> str:
    """The error on test data, or of a regression the loss."""
    if not metrics:
        return "–"
    return percent(metrics["test_error"]) if "test_error" in metrics else number(metrics.get("test_loss"))


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _shares(overlap: Overlap) -> list[str]:
    return [percent(overlap.jaccard, 1), percent(overlap.chance, 1)]


def _values(differences: Mapping[str, Sequence[Plain]]) -> Iterator[list[str]]:
    """Rows of values that differ; of components with other names not the options that not all of them have."""
    for path, values in differences.items():
        if f"{path.rpartition('.')[0]}.name" in differences and None in values:
            continue
        yield [path, *("–" if value is None else str(value) for value in values)]
