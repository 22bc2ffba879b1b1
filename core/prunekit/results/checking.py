"""What every results file must be, looked at once when it is opened: the MUSTs of ``docs/format.md``.

Checksums show that a file is as it was written. This shows that what was written is a run: that columns have one
length, that masks and counts agree, that phases come in their order. So no table, figure, export or resumed run is
made of half of one, whoever wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

import h5py
import numpy as np

from prunekit.errors import ResultsError
from prunekit.results.format import (
    ATTEMPT_COLUMNS,
    FLOAT_COLUMNS,
    INTEGER_COLUMNS,
    METRIC_COLUMNS,
    PHASES,
    member,
)
from prunekit.results.rows import further

if TYPE_CHECKING:
    from prunekit.records import Row
    from prunekit.results.layout import Layout
    from prunekit.results.structure import Held

MANY = 1 << 26
"""Weights up to which the masks are read on opening; those of more are looked at when they are asked for."""
_REQUIRED = {
    "steps": (*INTEGER_COLUMNS, *FLOAT_COLUMNS, *METRIC_COLUMNS[:3], "layers"),
    "attempts": tuple(name for name in ATTEMPT_COLUMNS if name != "damping"),  # which came later
    "training/dense": ("epoch", "running_loss"),
    "training/finetuned": ("epoch", "running_loss"),
    "examples": ("start", "count"),
}
"""What a table must have, where it is there."""
_NUMBERS = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM)  # h5py's bool is an enumeration


def check(layout: Layout, summary: Row, held: Mapping[str, Held]) -> None:
    """Look at everything but the values of weights.

    Args:
        layout: How the file stores things.
        summary: Of the file.
        held: Its data sets.

    Raises:
        ResultsError: Saying what is wrong and where; the caller adds the file's name.
    """
    _check_texts(summary)
    _check_phases(layout, summary, held)
    tensors, count = layout.tensors(), summary["prunable"]
    total = sum(map(math.prod, tensors.values()))
    _need(total == count, f"prunable: {count} weights, and tensors of {total}")
    _check_steps(summary)
    parameters = layout.parameters()
    if parameters:
        for name, shape in tensors.items():
            _need(
                parameters.get(name) == shape,
                f"prunable: {name} is not a tensor of that shape among the weights",
            )
    _need(not summary["steps"] or count > 0, "steps: there is nothing to prune")
    if 0 < count <= MANY:
        check_masks(layout, summary)
    _check_examples(layout, summary)
    layout.check_rankings(count, len(summary["steps"]))


def check_columns(held: Mapping[str, Held]) -> None:
    """Look at columns that stand side by side, before rows are made of them: of numbers, and of one length.

    Raises:
        ResultsError: Naming the table or the column.
    """
    tables: dict[str, dict[str, Held]] = {}
    for path, data in held.items():
        table, _, column = path.rpartition("/")
        parts = path.split("/")
        if parts[0] in ("steps", "training") or (parts[0] == "attempts" and column != "measured"):
            tables.setdefault(table, {})[column] = data
        elif parts[0] == "probes" and len(parts) > 3 and parts[2] == "step" and column != "summary":
            tables.setdefault("/".join(parts[:3]), {})["/".join(parts[3:])] = data
        elif path in ("examples/start", "examples/count"):
            tables.setdefault(table, {})[column] = data
    for table, columns in tables.items():
        lacking = [name for name in _REQUIRED.get(table, ()) if name not in columns]
        _need(not lacking, f"{table}: no column {', '.join(lacking)}")
        for column, data in columns.items():
            whole = data.kind in _NUMBERS and data.shape
            _need(whole, f"{table}/{column}: not a column of numbers")
            exact = column not in ("start", "count", *INTEGER_COLUMNS) or table.startswith(
                ("training", "probes")
            )
            _need(exact or data.kind == h5py.h5t.INTEGER, f"{table}/{column}: not whole numbers")
        lengths = {data.shape[0] for data in columns.values()}
        _need(
            len(lengths) == 1,
            f"{table}: columns of different lengths ({', '.join(map(str, sorted(lengths)))})",
        )


def check_masks(layout: Layout, summary: Row) -> None:
    """Hold the masks against the columns of the steps.

    Raises:
        ResultsError: If they are not nested, or are not those that the columns count.
    """
    steps, sizes = summary["steps"], [math.prod(shape) for shape in layout.tensors().values()]
    counts = layout.pruned(len(steps))
    for row, pruned in zip(steps, counts, strict=True):
        where = f"step {row['step']}"
        _need(
            int(pruned.sum()) == row["pruned"],
            f"{where}: the masks prune {pruned.sum()}, not {row['pruned']}",
        )
        shares = np.divide(pruned, sizes, out=np.zeros(len(sizes)), where=np.asarray(sizes) > 0)
        agree = np.allclose(shares, list(row["layers"].values()), rtol=0, atol=1e-9)
        _need(agree, f"{where}: the sparsities of the layers are not those of the masks")


def shapes(where: str, tensors: object) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a list of tensors, each a mapping.

    Raises:
        ResultsError: If that is not what they are.
    """
    found: dict[str, tuple[int, ...]] = {}
    for tensor in tensors if isinstance(tensors, list) else [None]:
        name, shape = (tensor.get("name"), tensor.get("shape")) if isinstance(tensor, dict) else (None, None)
        whole = isinstance(name, str) and isinstance(shape, list) and all(_is_count(n) for n in shape)
        _need(whole and name not in found, f"{where}: not a list of tensors with names and shapes")
        found[str(name)] = tuple(shape or ())
    return found


def _need(right: object, otherwise: str) -> None:
    if not right:
        raise ResultsError(otherwise)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_texts(summary: Row) -> None:
    """JSON documents hold what readers take out of them."""
    spec = summary["spec"]
    _need(isinstance(spec, dict), "spec/resolved: not an object")
    _need(isinstance(spec.get("name"), str), "spec/resolved: no name")
    _named(spec, "model")
    _named(spec, "dataset")
    prune = spec.get("prune", False)
    _need(prune is None or isinstance(prune, dict), "spec/resolved: prune is neither a mapping nor null")
    if prune:
        criterion = _named(prune, "criterion")
        _named(prune, "scheduler")
        _need(_is_number(criterion.get("lambda")), "spec/resolved: prune.criterion.lambda is not a number")
    _need(summary["prunable"] >= 0, "prunable: a negative number of weights")
    for key in ("origins", "environment", "inputs"):
        _need(isinstance(summary[key], dict), f"{key}: not an object")
    _need(isinstance(summary["environment"].get("error", ""), str), "environment: error is not text")
    _list(summary, "warnings", str)
    _list(summary, "resumptions", dict)
    for attempt in summary["attempts"]:
        _need(isinstance(attempt["measured"], dict), "attempts/measured: not an object")
    for label, found in summary["probes"].items():
        _need(isinstance(found, dict), f"probes/{label}: the summary is not an object")


def _named(owner: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = owner.get(key)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ResultsError(f"spec/resolved: {key} has no name")
    return value


def _list(summary: Row, key: str, kind: type) -> None:
    value = summary[key]
    _need(
        isinstance(value, list) and all(isinstance(v, kind) for v in value),
        f"{key}: not a list of {kind.__name__}",
    )


def _check_phases(layout: Layout, summary: Row, held: Mapping[str, Held]) -> None:
    there = [phase for phase in PHASES if summary[phase] is not None]
    prunes = summary["spec"]["prune"] is not None
    order = PHASES if prunes else ("dense", "finetuned")
    _need(
        there == list(order[: len(there)]),
        f"metrics: {', '.join(there)} is not an initial part of {', '.join(order)}",
    )
    _need(there or not summary["steps"], "steps: there are some, but nothing was measured before them")
    if summary["status"] == "complete":
        _need("dense" in there, "metrics: a complete run without its dense network")
        _need(not prunes or "pruned" in there, "metrics: a complete run without its pruned network")
    _need(layout.phases() == there, "weights: not those of the measured phases")
    for phase in there:
        for metric in (*METRIC_COLUMNS, *further(summary[phase])):
            found = held.get(f"metrics/{phase}/{metric}")
            if found is not None:
                _need(
                    math.prod(found.shape) == 1 and found.kind in _NUMBERS,
                    f"metrics/{phase}/{metric}: not a number",
                )
        for name, shape in layout.parameters().items():
            stored = held.get(f"weights/{phase}/{member(name)}")
            _need(stored is not None, f"weights/{phase}: {name} is missing")
            same = stored is not None and stored.shape in (shape, shape or (1,))
            _need(same, f"weights/{phase}/{name}: not of shape {list(shape)}")


def _check_steps(summary: Row) -> None:
    steps, count = summary["steps"], summary["prunable"]
    for number, row in enumerate(steps, 1):
        _need(row["step"] == number, f"steps/step: {row['step']} where step {number} belongs")
        _need(0 <= row["pruned"] <= count, f"step {number}: {row['pruned']} of {count} weights are pruned")
        _need(
            row["remaining"] == count - row["pruned"],
            f"step {number}: pruned and remaining do not add up to all weights",
        )
        sparsity = row["sparsity"]
        right = sparsity is not None and math.isclose(
            sparsity * count, row["pruned"], rel_tol=1e-9, abs_tol=1e-6
        )
        _need(right, f"step {number}: the sparsity is not the pruned fraction")
    for before, row in pairwise(steps):
        _need(
            row["pruned"] >= before["pruned"], f"step {row['step']}: fewer weights are pruned than before it"
        )


def _check_examples(layout: Layout, summary: Row) -> None:
    start, count, total = layout.samples()
    steps = len(summary["steps"])
    shared = summary["format_version"] == 1 and len(start) == 1 <= steps  # a fixed sample lies there once
    _need(len(start) == steps or shared, f"examples: of {len(start)} steps, not {steps}")
    for step, (first, size) in enumerate(zip(start.tolist(), count.tolist(), strict=True), 1):
        _need(0 <= first <= first + size <= total, f"examples: the sample of step {step} is missing")
