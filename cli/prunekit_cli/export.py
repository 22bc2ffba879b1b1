"""``prunekit export``: weights and masks as safetensors. Needs no torch."""

from __future__ import annotations

import os
from pathlib import Path

from prunekit.records import Plain


def export(
    file: Path, weights: Path | None, masks: Path | None, phase: str | None, step: int | None, overwrite: bool
) -> None:
    """Write what was asked for."""
    from prunekit.errors import SpecError
    from prunekit.results import open_results

    weights, masks = (path and Path(os.path.expanduser(path)) for path in (weights, masks))
    if weights is None and masks is None:
        raise SpecError("export writes --weights FILE, --masks FILE or both; neither is given")
    if weights is not None and masks is not None and weights.resolve() == masks.resolve():
        raise SpecError(f"--weights and --masks are both {weights}; each needs a file of its own")
    for path in (weights, masks):
        if path is not None and path.resolve() == Path(os.path.expanduser(file)).resolve():
            raise SpecError(f"{path}: is the results file itself; choose another name")
        if path is not None:
            _check_replaceable(path, overwrite)
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


def _check_replaceable(path: Path, overwrite: bool) -> None:
    from prunekit.errors import ResultsError
    from prunekit.results.ours import is_export

    if not path.exists():
        return
    if not overwrite:
        raise ResultsError(f"{path}: exists; use --overwrite to replace it")
    if not is_export(path.resolve()):
        raise ResultsError(
            f"{path}: is not a file that prunekit exported, so --overwrite does not replace it; remove it, or choose "
            "another name"
        )


def _save(path: Path, arrays: dict[str, Plain]) -> None:
    import numpy as np
    from safetensors.numpy import save

    from prunekit.errors import ResultsError
    from prunekit.results.ours import EXPORT
    from prunekit.results.replacing import replacing

    content = save({name: np.asarray(a, order="C") for name, a in arrays.items()}, {"writer": EXPORT})
    try:
        with replacing(
            Path(os.path.realpath(path))
        ) as temporary:  # a link stays, and what it leads to is written
            temporary.write_bytes(content)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from None
