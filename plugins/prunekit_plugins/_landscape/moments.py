"""What a probe has found at each moment of a run, in its order, for pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from prunekit.results import Results

_ORDER = ("dense", "step", "pruned", "finetuned", "end")
SPOKEN = {
    "dense": "before pruning",
    "finetuned": "after fine-tuning",
    "end": "at the end",
    "pruned": "after pruning",
}
"""Moments in words."""


@dataclass(frozen=True)
class Found:
    """What was found at one moment.

    Attributes:
        when: In words.
        sparsity: Of the prunable weights then.
        summary: What the probe says in short.
        arrays: Its arrays, by group and name.
    """

    when: str
    sparsity: float
    summary: Mapping[str, Any]
    arrays: Mapping[str, Mapping[str, np.ndarray]]


def found(results: Results, label: str) -> list[Found]:
    """Everything that a probe has found."""
    summary, moments = results.summary["probes"][label], results.moments(label)
    steps = {step["step"]: step["sparsity"] for step in results.summary["steps"]}
    last = max(steps.values(), default=0.0)
    all_of_it: list[Found] = []
    for moment in (moment for moment in _ORDER if moment in moments):
        arrays = results.probe(label, moment)
        if moment != "step":
            said = summary if moment == "end" else summary[moment]
            all_of_it.append(Found(SPOKEN[moment], 0.0 if moment == "dense" else last, said, arrays))
            continue
        for i, row in enumerate(summary["steps"]):
            rows = {group: {k: v[i] for k, v in some.items()} for group, some in arrays.items()}
            all_of_it.append(Found(f"after step {row['step']}", steps[row["step"]], row, rows))
    return all_of_it
