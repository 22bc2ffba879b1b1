"""Runs that differ only in their seeds, as one row: means and standard deviations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean, stdev

from prunekit.records import Plain
from prunekit.sweeps.folder import Found

_NOT_AVERAGED = ("lambda", "threads", "peak_memory", "peak_gpu_memory")


def is_seed(parameter: str) -> bool:
    """Whether a parameter only says what is drawn: ``seed``, one of ``seeds``, the split's."""
    return parameter == "seed" or parameter.startswith("seeds.") or parameter.endswith(".split_seed")


def over_seeds(runs: Sequence[Found]) -> list[dict[str, Plain]]:
    """A row for each combination of the parameters that are no seeds.

    Args:
        runs: Those that the sweep names.

    Returns:
        Rows with the parameters, ``runs`` (how many there shall be) and ``complete``; of the numbers that all complete
        ones have the mean and, from two on, the standard deviation (of a sample) under the name with ``_sd`` behind it.
    """
    groups: dict[str, list[Found]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_without_seeds(run.parameters), sort_keys=True), []).append(run)
    return [_row(group) for group in groups.values()]


def _without_seeds(parameters: Mapping[str, Plain]) -> dict[str, Plain]:
    return {name: value for name, value in parameters.items() if not is_seed(name)}


def _row(group: Sequence[Found]) -> dict[str, Plain]:
    done = [run for run in group if run.status == "complete"]
    row: dict[str, Plain] = {
        **_without_seeds(group[0].parameters),
        "runs": len(group),
        "complete": len(done),
    }
    for name in dict.fromkeys(name for run in done for name in run.row):
        values = [run.row.get(name) for run in done]
        numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) < len(done) or not all(map(isfinite, numbers)):
            if name == "criterion":
                row[name] = values[0]
        elif name in _NOT_AVERAGED:
            row[name] = max(numbers)
        else:
            row[name] = fmean(numbers)
            row[f"{name}_sd"] = stdev(numbers) if len(numbers) > 1 else None
    return row
