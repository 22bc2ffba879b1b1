"""Names and numbers that writer and reader share; ``docs/format.md`` is the specification."""

from __future__ import annotations

import hashlib
import re

FORMAT = "prunekit-results"
FORMAT_VERSION = 2

PHASES = ("dense", "pruned", "finetuned")
MEMBERS = (
    *(
        "attempts",
        "environment",
        "examples",
        "inputs",
        "masks",
        "metrics",
        "probes",
        "prunable",
        "resumptions",
        "saliencies",
    ),
    *("spec", "steps", "training", "warnings", "weights"),
)
"""What the root may hold; a reader ignores the rest."""
STATUSES = ("running", "complete", "failed", "interrupted")
MOMENTS = ("dense", "step", "pruned", "finetuned", "end")

INTEGER_COLUMNS = ("step", "pruned", "remaining")
FLOAT_COLUMNS = ("target_sparsity", "sparsity", "predicted_delta_loss", "delta_loss", "seconds")
METRIC_COLUMNS = ("train_loss", "valid_loss", "test_loss", "train_error", "valid_error", "test_error")
ATTEMPT_COLUMNS = {
    "step": "int64",
    "target_sparsity": "float64",
    "lambda": "float64",
    "damping": "float64",
    "predicted_delta_loss": "float64",
    "delta_loss": "float64",
    "accepted": "uint8",
    "seconds": "float64",
}
"""Columns of ``attempts`` to their types; ``measured`` stands beside them as text."""

UNITS = {
    "target_sparsity": "fraction of prunable weights",
    "sparsity": "fraction of prunable weights",
    "pruned": "weights",
    "remaining": "weights",
    "seconds": "s",
    "epoch": "epochs",
}


def units(column: str) -> str:
    """Units of a column: fractions for errors, the loss's own for losses (nats for cross-entropy)."""
    if column.endswith("_error"):
        return "fraction of predictions"
    return UNITS.get(column, "loss" if "loss" in column else "")


_ACTING = re.compile("[%/\x00-\x1f\x7f]")
_LONGEST = 255  # bytes


def member(name: str) -> str:
    r"""What a tensor's data set is called: its name, in which nothing is a path to HDF5.

    Examples:
        >>> member("layers.0.weight"), member("a//b"), len(member(3000 * "x"))
        ('layers.0.weight', 'a%2F%2Fb', 217)
    """
    escaped = _ACTING.sub(lambda found: f"%{ord(found[0]):02X}", name)
    if escaped in ("", "."):
        return escaped.replace(".", "%2E") or "%"
    if len(escaped.encode()) <= _LONGEST:
        return escaped
    beginning = escaped.encode()[:200].decode(errors="ignore")
    return f"{beginning}%{hashlib.sha256(name.encode()).hexdigest()[:16]}"
