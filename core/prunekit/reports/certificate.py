"""Certificates in a line, and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prunekit.records import Row
from prunekit.reports.plain_table import PlainTable
from prunekit.reports.words import number, percent

_COLUMNS = ("value", "fitted", "bound", "gap", "relative_gap", "damping", "budget")


def is_certificate(rows: Sequence[Row]) -> bool:
    """Whether a probe's steps are those of certificates, whatever its label."""
    return bool(rows) and all(
        "proved" in row
        and all(key in row and isinstance(row[key], int | float | None) for key in (*_COLUMNS, "step"))
        for row in rows
    )


def headline(label: str, rows: Sequence[Row]) -> str:
    """How far the worst step is from the best one, at most."""
    known = [row for row in rows if row["relative_gap"] is not None]
    sides = [row for row in rows if row["relative_gap"] is None and row["gap"] is not None]
    parts = []
    if known:
        worst = max(known, key=lambda row: float(row["relative_gap"]))
        which = "its only step"
        if len(rows) > 1:
            which = f"the widest of {len(known)} steps, at step {worst['step']}"
        parts.append(
            f"within {_fraction(worst['relative_gap'])} of the best choice under its model, proved ({which})"
        )
    if sides:
        most = max(float(row["gap"]) for row in sides)
        where = f"{len(sides)} step{'s' if len(sides) > 1 else ''} whose value and bound have different signs"
        parts.append(f"at {where}, no further than {number(most)} from the best choice")
    return f"{label}: " + ("; ".join(parts) or "no bound has been found")


def certificate(label: str, rows: Sequence[Row], steps: Sequence[Row]) -> Iterator[PlainTable | str]:
    """A row for each step."""
    sparsity = {step["step"]: step["sparsity"] for step in steps}
    exact = [key for key in ("optimum", "nodes") if all(key in row for row in rows)]
    columns = ["step", "sparsity", "kept", "damping", "value", "fitted", "bound", "gap", *exact, "at most"]
    lines = []
    for row in rows:
        relative = row["relative_gap"]
        lines.append(
            [
                str(row["step"]),
                percent(sparsity.get(row["step"]), 3),
                f"{row['budget']:,}",
                number(row["damping"]),
                *(number(row[key], 6) for key in ("value", "fitted", "bound", "gap")),
                *(number(row[key], 6) if key == "optimum" else str(row[key]) for key in exact),
                "–" if relative is None else _fraction(relative),
            ]
        )
    yield PlainTable(f"Probe {label}", columns, lines, left=0)
    yield headline(label, rows)


def _fraction(value: float) -> str:
    """As a percentage, with two digits that count."""
    return f"{100 * value:.2g} %" if value < 1 else f"{100 * value:.0f} %"
