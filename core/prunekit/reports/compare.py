"""Runs side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import combinations
from math import fsum
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.errors import ResultsError
from prunekit.records import Plain, Row
from prunekit.reports.overlap import Overlap, overlaps
from prunekit.results import Results, open_results

if TYPE_CHECKING:
    import numpy as np

_NOT_SHOWN = ("version", "name", "folder", "device", "memory", "probes", "recorders")
"""Of a spec: what makes no other result."""

_PARTS = ("linear", "diagonal", "off_diagonal", "ggn_to_hessian", "higher_order")
_MOST_PAIRS = 45  # masks of ten runs with each other; of more, each with the first


@dataclass(frozen=True)
class Comparison:
    """Some runs side by side.

    Attributes:
        runs: A row of numbers for each.
        differences: Dotted path of a spec's value to that of each run, where they are not all the same.
        unlike: The same for whatever makes runs hard to compare: network, data, training, measurements; empty if they are
            alike.
        overlaps: Overlaps of the final masks of two runs: their places in ``runs``, the overlap of all tensors, and that of
            each.
        curves: For pictures: each run's sparsities and training losses after the steps.
    """

    runs: Sequence[Row]
    differences: Mapping[str, Sequence[Plain]]
    unlike: Mapping[str, Sequence[Plain]]
    overlaps: Sequence[tuple[int, int, Overlap, Mapping[str, Overlap]]]
    curves: Sequence[tuple[Sequence[float], Sequence[float | None]]]

    @property
    def comparable(self) -> bool:
        """Whether all were made under one protocol."""
        return not self.unlike

    @property
    def summary(self) -> dict[str, Plain]:
        """The object that ``prunekit compare --json`` prints."""
        return {
            "comparable": self.comparable,
            "runs": list(self.runs),
            "differences": dict(self.differences),
            "unlike": dict(self.unlike),
            "overlaps": [
                {
                    "runs": [a, b],
                    **asdict(whole),
                    "layers": {name: asdict(one) for name, one in layers.items()},
                }
                for a, b, whole, layers in self.overlaps
            ],
        }


def compare(runs: Iterable[Results | str | Path], anyway: bool = False) -> Comparison:
    """Put runs side by side.

    Args:
        runs: Results files or opened results, two at least.
        anyway: Compare runs of unlike protocols too.

    Raises:
        ResultsError: If one cannot be read, there are less than two, or they were made under unlike protocols, saying which
            values differ.
    """
    given = [runs] if isinstance(runs, str | Path | Results) else list(runs)
    if len(given) < 2:
        raise ResultsError(f"compare takes at least two results files; found {len(given)}")
    with ExitStack() as stack:
        opened = [
            one if isinstance(one, Results) else stack.enter_context(open_results(one)) for one in given
        ]
        names = _names([one.path for one in opened])
        unlike = _differing([one.summary["protocol"] for one in opened])
        if unlike and not anyway:
            raise ResultsError(
                "these runs were not made under one protocol, so their numbers are not comparable: "
                f"{'; '.join(_told(path, values, names) for path, values in unlike.items())}. Compare them anyway with "
                "--anyway (anyway=True)"
            )
        rows = [_row(name, one) for name, one in zip(names, opened, strict=True)]
        specs = [{k: v for k, v in one.summary["spec"].items() if k not in _NOT_SHOWN} for one in opened]
        steps = [one.summary["steps"] for one in opened]
        curves = [([s["sparsity"] for s in some], [s["train_loss"] for s in some]) for some in steps]
        return Comparison(rows, _differing(specs), unlike, _overlaps(opened), curves)


def _row(name: str, results: Results) -> Row:
    summary = results.summary
    spec, steps = summary["spec"], summary["steps"]
    pruning = spec["prune"] or {}
    return {
        "file": str(results.path),
        "name": name,
        "status": summary["status"],
        "criterion": (pruning.get("criterion") or {}).get("name"),
        "lambda": (pruning.get("criterion") or {}).get("lambda"),
        "scheduler": (pruning.get("scheduler") or {}).get("name"),
        "seed": spec["seed"],
        "steps": len(steps),
        "attempts_taken_back": sum(not attempt["accepted"] for attempt in summary["attempts"]),
        "sparsity": steps[-1]["sparsity"] if steps else 0.0,
        "predicted_delta_loss": _total(step["predicted_delta_loss"] for step in steps),
        "delta_loss": _total(step["delta_loss"] for step in steps),
        "train_delta_loss": _change(summary, "train_loss"),
        **{phase: summary[phase] for phase in ("dense", "pruned", "finetuned")},
        "budget": _budget(results),
        "calibration": _calibration(results),
        "passes": len(steps),
        "seconds": _total(step["seconds"] for step in steps),
    }


def _total(values: Iterable[float | None]) -> float | None:
    found = list(values)
    known = [value for value in found if value is not None]
    return fsum(known) if found and len(known) == len(found) else None


def _change(summary: Row, metric: str) -> float | None:
    before, after = ((summary[phase] or {}).get(metric) for phase in ("dense", "pruned"))
    return None if before is None or after is None else after - before


def _budget(results: Results) -> dict[str, float | None] | None:
    """The parts of the error budget, summed over the steps."""
    steps = _measured(results, "error_budget")
    if not steps:
        return None
    return {part: _total(step["parts"][part] for step in steps) for part in _PARTS}


def _calibration(results: Results) -> Row | None:
    """How measured changes go with predicted ones, over all steps."""
    steps = _measured(results, "error_budget")
    return steps[-1].get("calibration") if steps else None


def _measured(results: Results, kind: str) -> list[Row]:
    for label, found in results.summary["probes"].items():
        if results.probe_kind(label) == kind and found.get("steps"):
            return list(found["steps"])
    return []


def _overlaps(opened: Sequence[Results]) -> list[tuple[int, int, Overlap, Mapping[str, Overlap]]]:
    masks: list[dict[str, np.ndarray]] = [
        one.masks(len(one.summary["steps"])) if one.summary["steps"] else {} for one in opened
    ]
    pairs = list(combinations(range(len(opened)), 2))
    if len(pairs) > _MOST_PAIRS:
        pairs = [(0, other) for other in range(1, len(opened))]
    found: list[tuple[int, int, Overlap, Mapping[str, Overlap]]] = []
    for a, b in pairs:
        shapes = [{name: mask.shape for name, mask in masks[place].items()} for place in (a, b)]
        if shapes[0] and shapes[0] == shapes[1]:
            found.append((a, b, *overlaps(masks[a], masks[b])))
    return found


def _differing(specs: Sequence[Row]) -> dict[str, list[Plain]]:
    """Values that are not the same everywhere, by dotted path; where one side has no such key, as deep as both go."""
    flat = [dict(_leaves(spec)) for spec in specs]
    paths = dict.fromkeys(path for some in flat for path in some)
    values = {path: [some.get(path) for some in flat] for path in paths}
    return {path: found for path, found in values.items() if any(value != found[0] for value in found)}


def _leaves(value: Row, path: str = "") -> Iterable[tuple[str, Plain]]:
    for key, inner in value.items():
        place = f"{path}.{key}" if path else key
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, place)
        else:
            yield place, inner


def _told(path: str, values: Sequence[Plain], names: Sequence[str]) -> str:
    if path == "inputs":
        return "inputs (the contents of data or checkpoint)"
    first = values[0]
    other = next(i for i, value in enumerate(values) if value != first)
    return f"{path} ({_short(first)} in {names[0]}, {_short(values[other])} in {names[other]})"


def _short(value: Plain) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _names(paths: Sequence[Path]) -> list[str]:
    """As short as tells them apart: the files' names, or with as many folders as it takes."""
    parts = [path.absolute().with_suffix("").parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
