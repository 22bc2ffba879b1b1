"""``prunekit export``: weights and masks as safetensors. Needs no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def export(
    file: Path, weights: Path | None, masks: Path | None, phase: str | None, step: int | None, overwrite: bool
) -> None:
    """Write what was asked for."""
    from prunekit.errors import ResultsError, SpecError
    from prunekit.results import open_results

    weights, masks = (path and Path(os.path.expanduser(path)) for path in (weights, masks))
    if weights is None and masks is None:
        raise SpecError("export writes --weights FILE, --masks FILE or both; neither is given")
    if weights is not None and masks is not None and weights.resolve() == masks.resolve():
        raise SpecError(f"--weights and --masks are both {weights}; each needs a file of its own")
    for path in (weights, masks):
        if path is not None and path.resolve() == Path(os.path.expanduser(file)).resolve():
            raise SpecError(f"{path}: is the results file itself; choose another name")
        if path is not None and path.exists() and not overwrite:
            raise ResultsError(f"{path}: exists; use --overwrite to replace it")
    with open_results(file) as results:
        if weights is not None:
            there = [p for p in ("dense", "pruned", "finetuned") if results.summary[p]]
            chosen = phase or (there[-1] if there else "dense")
            _save(weights, results.weights(chosen))
            print(f"{chosen} weights in {weights}")
        if masks is not None:
            last = len(results.summary["steps"]) if step is None else step
            _save(masks, results.masks(last))
            print(f"masks after step {last} in {masks}")


def _save(path: Path, arrays: dict[str, Any]) -> None:
    import numpy as np
    from safetensors.numpy import save

    from prunekit.errors import ResultsError

    target = Path(os.path.realpath(path))  # a link stays, and what it leads to is written
    temporary = target.with_name(target.name + ".tmp")
    try:
        temporary.write_bytes(save({name: np.asarray(a, order="C") for name, a in arrays.items()}))
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from None
