"""Rows of the summary, put together from a file's columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prunekit.records import Plain
from prunekit.results.format import INTEGER_COLUMNS, METRIC_COLUMNS

STEP_COLUMNS = (
    "step",
    "target_sparsity",
    "sparsity",
    "pruned",
    "remaining",
    "predicted_delta_loss",
    "delta_loss",
    *METRIC_COLUMNS,
)
_SPLITS = ("train_", "valid_", "test_")


def number(value: Any) -> float | None:
    """A float, or None for NaN (not measured, or not finite): JSON has neither NaN nor infinity."""
    as_float = float(value)
    return as_float if math.isfinite(as_float) else None


def further(names: Iterable[str]) -> list[str]:
    """Of some names, those of metrics that not every run has."""
    return sorted(n for n in names if n.startswith(_SPLITS) and n not in METRIC_COLUMNS)


def step_rows(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> list[dict[str, Plain]]:
    """The table of steps, a mapping per row; ``layers`` maps names to sparsities."""
    rows = []
    for i, layers in enumerate(columns["layers"]):
        row: dict[str, Plain] = {
            c: int(columns[c][i]) if c in INTEGER_COLUMNS else number(columns[c][i])
            for c in (*STEP_COLUMNS, *further(columns))
            if c in columns
        }
        row["layers"] = {str(n): float(s) for n, s in zip(names, layers, strict=True)}
        row["seconds"] = number(columns["seconds"][i])
        rows.append(row)
    return rows
