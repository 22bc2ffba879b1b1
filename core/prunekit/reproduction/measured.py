"""What the runs of a reproduction say, run by run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from prunekit.records import Row
from prunekit.results import open_results
from prunekit.sweeps.opened import Sweep

PARTS = ("linear", "diagonal", "off_diagonal", "ggn_to_hessian", "higher_order")


@dataclass(frozen=True)
class Measured:
    """A run.

    Attributes:
        criterion: Its name.
        lam: λ.
        scheduler: Its name.
        steps: π; of an adaptive scheduler, how many there were.
        seed: Of network and data.
        values: ``train``, ``valid`` and ``test``: the change of the loss by pruning; ``valid_gap`` and ``test_gap``: the
            error after fine-tuning minus that of the dense network, in points; ``predicted``; ``seconds``; the sums of the
            error budget's parts.
        before: What is known before fine-tuning, by kind, as columns of numbers.
        certified: The certificate's relative gap, at the last step.
    """

    criterion: str
    lam: float
    scheduler: str
    steps: int
    seed: int
    values: Mapping[str, float]
    before: Mapping[str, Sequence[float]]
    certified: float | None = None


def measured(sweep: Sweep) -> list[Measured]:
    """All complete runs of a sweep."""
    found = []
    for file in sweep.files():
        with open_results(file) as results:
            found.append(_of(results.summary))
    return found


def _of(summary: Row) -> Measured:
    spec, steps = summary["spec"], summary["steps"]
    values = dict(_values(summary))
    last = steps[-1]
    probes = summary["probes"]
    gradient = probes.get("gradient", {}).get("pruned", {})
    before: dict[str, list[float]] = {
        "loss change": [values["train"]],
        "validation loss change": [values.get("valid", values["train"])],
        "predicted loss change": [values.get("predicted", 0.0)],
        "layer sparsities": [float(v) for v in last["layers"].values()],
    }
    if summary["pruned"].get("valid_error") is not None:
        before["validation error"] = [float(summary["pruned"]["valid_error"])]
    if gradient:
        before["gradient norm"] = [float(gradient["kept"]), float(gradient["pruned"])]
    if all(part in values for part in PARTS):
        before["error budget"] = [values[part] for part in PARTS]
    prune = spec["prune"]
    certificate = probes.get("certificate", {}).get("steps")
    return Measured(
        prune["criterion"]["name"],
        float(prune["criterion"]["lambda"]),
        prune["scheduler"]["name"],
        len(steps),
        int(spec["seed"]),
        values,
        before,
        certificate[-1].get("relative_gap") if certificate else None,
    )


def _values(summary: Row) -> Iterable[tuple[str, float]]:
    dense, pruned, finetuned = summary["dense"], summary["pruned"], summary["finetuned"] or {}
    for split in ("train", "valid", "test"):
        if pruned.get(f"{split}_loss") is not None:
            yield split, pruned[f"{split}_loss"] - dense[f"{split}_loss"]
    for split in ("valid", "test"):
        if finetuned.get(f"{split}_error") is not None:
            yield f"{split}_gap", 100 * (finetuned[f"{split}_error"] - dense[f"{split}_error"])
    predicted = [step["predicted_delta_loss"] for step in summary["steps"]]
    if None not in predicted:
        yield "predicted", sum(predicted)
    yield "seconds", sum(step["seconds"] for step in summary["steps"])
    budget = summary["probes"].get("error_budget", {}).get("steps") or []
    for part in PARTS if len(budget) == len(summary["steps"]) else ():
        values = [row["parts"].get(part) for row in budget]
        if all(v is not None and isfinite(v) for v in values):
            yield part, sum(values)


Cell = tuple[str, float, int]
"""Criterion, λ and π."""


def cells(runs: Iterable[Measured], seeds: Sequence[int]) -> dict[Cell, list[Measured]]:
    """The runs of each cell of the grid, in the order of the seeds; cells without all seeds are left out."""
    found: dict[Cell, dict[int, Measured]] = {}
    for run in runs:
        found.setdefault((run.criterion, run.lam, run.steps), {})[run.seed] = run
    return {cell: [by[seed] for seed in seeds] for cell, by in found.items() if set(seeds) <= set(by)}


def column(runs: Iterable[Measured], name: str) -> list[float]:
    """One of the values of each run; NaN where it has none."""
    return [run.values.get(name, float("nan")) for run in runs]


def best(
    grid: Mapping[Cell, Sequence[Measured]], criterion: str, by: str, steps: int | None = None
) -> tuple[Cell, Sequence[Measured]] | None:
    """The cell of a criterion with the smallest mean.

    Args:
        grid: Of :func:`cells`.
        criterion: Its name.
        by: A value, of validation data.
        steps: π; ``None`` for any.
    """
    means: dict[Cell, float] = {}
    for cell, runs in grid.items():
        if cell[0] == criterion and (steps is None or cell[2] == steps):
            mean = sum(column(runs, by)) / len(runs)
            if isfinite(mean):
                means[cell] = mean
    if not means:
        return None
    chosen = min(means, key=means.__getitem__)
    return chosen, grid[chosen]
