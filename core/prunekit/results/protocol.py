"""Under which conditions a run was made: runs that differ in none of them can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from prunekit.records import Plain, Row

_OF_THE_SPEC = ("model", "dataset", "loss", "dtype", "train", "finetune", "evaluate")
_OF_PRUNING = ("prunable", "zeros", "recalibrate_batchnorm")
_PLACES = ("checkpoint", "root", "path")


def protocol(spec: Row, inputs: Mapping[str, str] | None, environment: Row) -> dict[str, Plain]:
    """What has to be alike: network, data, loss, training before and after, what is measured, what may be pruned, how far.

    Files count by their digests and not by where they lie. Seeds, criterion, schedule, examples and selector are what is
    compared.

    Args:
        spec: Resolved.
        inputs: File to digest.
        environment: Of the run.
    """
    found: dict[str, Plain] = {key: _placeless(spec.get(key)) for key in _OF_THE_SPEC}
    found["evaluate"] = {k: v for k, v in _mapping(spec.get("evaluate")).items() if k != "every"}
    pruning = _mapping(spec.get("prune"))
    found |= {f"prune.{key}": pruning.get(key) for key in _OF_PRUNING}
    prunable = _mapping(found["prune.prunable"])
    if "preset" in prunable and prunable["preset"] is None:  # which earlier files do not have
        found["prune.prunable"] = {k: v for k, v in prunable.items() if k != "preset"}
    found["prune.scheduler.sparsity"] = _end(_mapping(pruning.get("scheduler")))
    found["splits"] = environment.get("splits")
    found["inputs"] = sorted(set((inputs or {}).values()))
    found["best_epoch"] = environment.get("best_epoch")
    return found


def mark(protocol: Row) -> str:
    """Twelve hexadecimal digits that tell protocols apart.

    Examples:
        >>> mark({"dtype": "float32"}), mark({"dtype": "float64"})
        ('4215d1418295', '170c4a4e13d0')
    """
    text = json.dumps(protocol, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _placeless(value: Plain) -> Plain:
    """Without the places of files, which have a digest."""
    if isinstance(value, Mapping):
        return {key: _placeless(inner) for key, inner in value.items() if key not in _PLACES}
    return value


def _end(scheduler: Row) -> Plain:
    levels = scheduler.get("levels")
    return levels[-1] if isinstance(levels, list) and levels else scheduler.get("sparsity")


def _mapping(value: Plain) -> Row:
    return value if isinstance(value, Mapping) else {}
