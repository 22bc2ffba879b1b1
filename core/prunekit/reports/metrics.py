"""Metrics beside loss and error, as screens and pages show them."""

from __future__ import annotations

from collections.abc import Sequence

from prunekit.records import Row
from prunekit.reports.words import number
from prunekit.results.rows import further


def further_rows(summary: Row, phases: Sequence[str]) -> list[list[str]]:
    """A row for each: its name, and its value for each of some networks, of which the first has all that there are."""
    kinds = dict.fromkeys(name.partition("_")[2] for name in further(summary[phases[0]]))
    names = [f"{split}_{kind}" for kind in kinds for split in ("train", "valid", "test")]
    rows = [
        [name.replace("_", " "), *(number(summary[phase].get(name)) for phase in phases)] for name in names
    ]
    return [row for row in rows if set(row[1:]) != {number(None)}]
