"""Weights and masks of a results file as safetensors, for other tools; no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.errors import ResultsError, SpecError
from prunekit.reports.packing import FORMATS, packed
from prunekit.results.ours import EXPORT, is_export
from prunekit.results.replacing import replacing

if TYPE_CHECKING:
    import numpy as np

    from prunekit.results import Results

_PHASES = ("dense", "pruned", "finetuned")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        phase: Of the weights.
        step: After which the masks are.
    """

    phase: str
    step: int


def export(
    results: Results,
    weights: Path | None,
    masks: Path | None,
    phase: str | None,
    step: int | None,
    overwrite: bool,
    form: str = "dense",
) -> Exported:
    """Write what was asked for; see :meth:`prunekit.reports.opened.RunResults.export`."""
    if weights is None and masks is None:
        raise SpecError("export writes weights, masks or both; neither is given a file")
    if weights is not None and masks is not None and weights.resolve() == masks.resolve():
        raise SpecError(f"weights and masks are both {weights}; each needs a file of its own")
    for path in (weights, masks):
        if path is not None and path.resolve() == results.path.resolve():
            raise SpecError(f"{path}: is the results file itself; choose another name")
        if path is not None:
            _check_replaceable(path, overwrite)
    if form not in FORMATS:
        raise SpecError(f"--format {form}: accepted are {', '.join(FORMATS)}")
    if form != "dense" and weights is None:
        raise SpecError(f"--format {form} is a form of weights; give them a file (--weights)")
    chosen = phase or last_phase(results)
    last = len(results.summary["steps"]) if step is None else step
    if weights is not None:
        values = results.weights(chosen)
        _save(weights, packed(values, results.masks(last), form) if form != "dense" else values, form)
    if masks is not None:
        _save(masks, results.masks(last))
    return Exported(chosen, last)


def last_phase(results: Results) -> str:
    """The fine-tuned, pruned or dense network, whichever was the last."""
    there = [p for p in _PHASES if results.summary[p]]
    return there[-1] if there else _PHASES[0]


def _check_replaceable(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not overwrite:
        raise ResultsError(f"{path}: exists; use --overwrite to replace it")
    if not is_export(path.resolve()):
        raise ResultsError(
            f"{path}: is not a file that prunekit exported, so --overwrite does not replace it; remove it, or choose "
            "another name"
        )


def _save(path: Path, arrays: Mapping[str, np.ndarray], form: str = "dense") -> None:
    import numpy as np
    from safetensors.numpy import save

    content = save(
        {name: np.asarray(a, order="C") for name, a in arrays.items()}, {"writer": EXPORT, "form": form}
    )
    try:
        # A link stays, and what it leads to is written.
        with replacing(Path(os.path.realpath(path))) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from None
