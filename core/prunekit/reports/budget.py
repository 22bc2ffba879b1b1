"""The error budget in a line, and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prunekit.records import Row
from prunekit.reports.plain_table import PlainTable
from prunekit.reports.words import number, percent

_BESIDE = ("sampling", "generalisation", "predicted_delta_loss")


def is_budget(rows: Sequence[Row]) -> bool:
    """Whether a probe's steps are those of an error budget, whatever its label."""
    return bool(rows) and all(map(_holds_a_budget, rows))


def _holds_a_budget(row: Row) -> bool:
    """Whether every value that is shown is there and a number or nothing; a file may hold anything."""
    parts, calibration = row.get("parts"), row.get("calibration")
    if not isinstance(parts, dict) or not isinstance(calibration, dict) or len(parts) < 2:
        return False
    reasons = row.get("reasons", {})
    numbers = [
        *parts.values(),
        *(row.get(key) for key in ("measured", "impossible", *_BESIDE)),
        *(calibration.get(key) for key in ("slope", "r_squared", "rank_correlation")),
    ]
    return (
        isinstance(reasons, dict)
        and "impossible" in row
        and all(isinstance(n, int | float | None) for n in numbers)
    )


def headline(label: str, rows: Sequence[Row]) -> str:
    """Which parts are the biggest, whether predictions were impossible, and how they agree with what was measured."""
    sizes: dict[str, float] = {}
    for row in rows:
        for part, value in row["parts"].items():
            sizes[part] = sizes.get(part, 0.0) + abs(value or 0.0)
    total = sum(sizes.values())
    first, second = sorted(sizes, key=lambda part: -sizes[part])[:2]
    text = f"{label}: the biggest part is {first}"
    if total:
        shares = [percent(sizes[part] / total, 0) for part in (first, second)]
        text += f" ({shares[0]} of the sizes of all), then {second} ({shares[1]})"
    known = [row["impossible"] for row in rows if row["impossible"] is not None]
    if known:
        steps = f"{len(known)} step{'s' if len(known) > 1 else ''}"
        text += f"; {sum(known) or 'none'} of {steps} had an impossible prediction (below any loss)"
    found = [rows[-1]["calibration"].get(key) for key in ("slope", "r_squared", "rank_correlation")]
    if None not in found:
        slope, square, rank = found
        text += f"; measured over predicted: slope {slope:.3g}, R² {square:.3g}, rank correlation {rank:.3g}"
    return text


def budget(label: str, rows: Sequence[Row], steps: Sequence[Row]) -> Iterator[PlainTable | str]:
    """A row for each step."""
    parts = list(rows[0]["parts"])
    sparsity = {step["step"]: step["sparsity"] for step in steps}
    columns = ["step", "sparsity", "measured", *parts, *_BESIDE, ""]
    lines = [
        [
            str(row["step"]),
            percent(sparsity.get(row["step"]), 3),
            number(row.get("measured")),
            *(number(row["parts"].get(part)) for part in parts),
            *(number(row.get(key)) for key in _BESIDE),
            "impossible" if row.get("impossible") else "",
        ]
        for row in rows
    ]
    yield PlainTable(f"Probe {label}", [column.replace("_", " ") for column in columns], lines, left=0)
    yield headline(label, rows)
    reasons = {what: why for row in rows for what, why in row.get("reasons", {}).items()}
    for what, why in reasons.items():
        yield f"no {what.replace('_', ' ')}: {why}"
