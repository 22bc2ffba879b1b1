"""The dense network of a seed, trained once: runs of a sweep that begin with the same one take it from each other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.errors import ResultsError
from prunekit.records import Row
from prunekit.results import Results, open_results
from prunekit.spec import Spec

if TYPE_CHECKING:
    from prunekit.runs.trained import Trained

_DECIDES = ("model", "dataset", "loss", "train", "dtype", "device", "memory")


def key(spec: Spec) -> str | None:
    """What decides a run's dense network; ``None`` for a run that trains none."""
    data = spec.data
    if data["train"] is None or not data["train"]["epochs"] or data["model"]["checkpoint"] is not None:
        return None
    seeds = {name: data["seeds"][name] for name in ("init", "order")}
    return json.dumps({**{name: data.get(name) for name in _DECIDES}, "seeds": seeds}, sort_keys=True)


def trained(files: Iterable[Path], environment: Row, inputs: Mapping[str, str]) -> Trained | None:
    """The network, from the first file that has it and was made under the same circumstances.

    Args:
        files: Of runs with the same :func:`key`.
        environment: Of the run that wants it.
        inputs: Its files' digests.
    """
    from prunekit.runs.circumstances import changes

    for file in files:
        if not file.exists():
            continue
        try:
            with open_results(file) as results:
                summary = results.summary
                same = summary["inputs"] == dict(inputs) and not summary["resumptions"]
                if summary["dense"] and same and not changes(summary["environment"], [], environment):
                    return _taken(results)
        except ResultsError:  # torn, or gone meanwhile
            continue
    return None


def has_one(file: Path) -> bool:
    """Whether a run has come as far as that."""
    try:
        with open_results(file) as results:
            return bool(results.summary["dense"])
    except ResultsError:
        return False


def _taken(results: Results) -> Trained:
    import torch

    from prunekit.runs.trained import Trained

    columns = results.history("dense")
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    history = [
        {name: v if isfinite(v) else None for name, v in zip(columns, row, strict=True)} for row in rows
    ]
    weights = {name: torch.from_numpy(array) for name, array in results.weights("dense").items()}
    return Trained(weights, history)
