"""A sweep's table, for terminals and notebooks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prunekit.records import Plain
from prunekit.reports.plain_table import PlainTable
from prunekit.reports.values import shown
from prunekit.reports.words import number, percent
from prunekit.sweeps.seeds import over_seeds

if TYPE_CHECKING:
    from pathlib import Path

    from prunekit.sweeps.folder import Found

_SHOWN = 60
_COLUMNS = ("sparsity", "train Δloss", "test error", "fine-tuned", "seconds")


def parts(
    path: Path, found: Sequence[Found], marks: Mapping[str, int], more: str = "all with --json"
) -> Iterator[PlainTable | str]:
    """How a sweep stands, its runs or means over their seeds, and what has failed.

    Args:
        path: The sweep's folder.
        found: Its runs.
        marks: The marks of their protocols, to how many runs were made under each.
        more: Where what is left out can be read.
    """
    counts = ", ".join(f"{count} {status}" for status, count in Counter(run.status for run in found).items())
    yield f"{path}: {counts}"
    if len(marks) > 1:
        some = ", ".join(f"{mark} ({count})" for mark, count in list(marks.items())[:4])
        others = ", …" if len(marks) > 4 else ""
        yield (
            f"made under {len(marks)} protocols, so not all rows are comparable: {some}{others}; "
            "prunekit compare says what differs"
        )
    elif marks:
        yield f"under one protocol, {next(iter(marks))}"
    runs = [run for run in found if run.status != "foreign"]
    rows = over_seeds(runs)
    yield _by_run(runs, more) if len(rows) == len(runs) else _by_combination(rows, more)
    for run in runs:
        if run.failure:
            yield f"{run.key} failed: {run.failure.strip().splitlines()[-1]}"


def _by_run(runs: Sequence[Found], more: str) -> PlainTable:
    names = varying(run.parameters for run in runs)
    rows = [
        [
            *(run.key[:8], run.status, *(value(run.parameters.get(name)) for name in names)),
            *(percent(run.row.get("sparsity"), 2), number(run.row.get("train_delta_loss"))),
            *(percent(run.row.get("pruned_test_error")), percent(run.row.get("finetuned_test_error"))),
            _seconds(run.row.get("seconds")),
        ]
        for run in runs[:_SHOWN]
    ]
    return PlainTable(
        _titled("Runs", len(runs), more), ["run", "status", *names, *_COLUMNS], rows, left=2 + len(names)
    )


def _by_combination(rows: Sequence[Mapping[str, Plain]], more: str) -> PlainTable:
    """Means over seeds, and standard deviations."""
    parameters = list(rows[0])[: list(rows[0]).index("runs")]
    names = varying({name: row[name] for name in parameters} for row in rows)

    def cell(row: Mapping[str, Plain], name: str, scale: float, unit: str) -> str:
        mean, deviation = row.get(name), row.get(f"{name}_sd")
        if mean is None:
            return "–"
        spread = "" if deviation is None else f" ± {scale * deviation:.2g}"
        return f"{scale * mean:.{4 if scale == 1 else 2}f}{spread}{unit}"

    lines = [
        [
            *(value(row.get(name)) for name in names),
            f"{row['complete']} of {row['runs']}",
            percent(row.get("sparsity"), 2),
            cell(row, "train_delta_loss", 1, ""),
            *(cell(row, name, 100, " %") for name in ("pruned_test_error", "finetuned_test_error")),
            _seconds(row.get("seconds")),
        ]
        for row in rows[:_SHOWN]
    ]
    title = _titled("Means over seeds, and standard deviations", len(rows), more)
    return PlainTable(title, [*names, "complete", *_COLUMNS], lines, left=1 + len(names))


def _seconds(value: Plain) -> str:
    return "–" if value is None else f"{value:.0f}"


def _titled(what: str, count: int, more: str) -> str:
    return f"{what} (the first {_SHOWN} of {count}; {more})" if count > _SHOWN else what


def value(given: Plain) -> str:
    """A parameter as a sweep's file would have it."""
    if isinstance(given, dict) and isinstance(given.get("name"), str):
        options = ", ".join(f"{key}={value(item)}" for key, item in given.items() if key != "name")
        return f"{given['name']} ({options})" if options else str(given["name"])
    if isinstance(given, int | float) and not isinstance(given, bool):
        return f"{given:g}" if isinstance(given, float) else str(given)
    return shown(given)


def varying(parameters: Iterable[Mapping[str, Plain]]) -> list[str]:
    """Names of the parameters that have several values."""
    values: dict[str, set[str]] = {}
    for one in parameters:
        for name, this in one.items():
            values.setdefault(name, set()).add(json.dumps(this, sort_keys=True))
    return [name for name, different in values.items() if len(different) > 1]
