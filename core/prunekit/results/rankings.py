"""Saliencies of chosen steps, as they lie in a file of format 2: a row for each, over all prunable weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import h5py
import numpy as np

from prunekit.errors import ResultsError
from prunekit.results import storing
from prunekit.results.history import Place

GROUP = "saliencies"
DTYPES = ("float16", "float32")
_CHUNK = 1 << 18  # weights


def append(file: h5py.File, step: int, saliencies: Mapping[str, np.ndarray], dtype: str) -> None:
    """Add what a step's weights were chosen by.

    In units of the largest size, which is stored beside them: else the small ones of many weights would be zero in 16 bits.

    Args:
        file: Open for writing.
        step: Its number.
        saliencies: By prunable tensor, in their order; what is infinite had gone before.
        dtype: Of :data:`DTYPES`; that of the first step stays.
    """
    values = np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in saliencies.values()])
    values[~np.isfinite(values)] = np.nan
    scale = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    if not storing.has(file, GROUP):
        group = file.create_group(GROUP)
        storing.growing(group, "step", (), np.int64, ("step",), "")
        storing.growing(group, "scale", (), np.float64, ("step",), "loss")
        chunk = (1, min(max(1, values.size), _CHUNK))
        storing.create(
            group, "values", (0, values.size), np.dtype(dtype), grows=True, chunk=chunk, compress=True
        )
        storing.describe(group["values"].id, ("step", "weight"), "scale")
    group = file[GROUP]
    storing.append(group, "step", step)
    storing.append(group, "scale", scale)
    storing.append(group, "values", (values / scale)[np.newaxis])


def steps(file: h5py.File) -> list[int]:
    """Those whose saliencies are kept."""
    numbers: list[int] = storing.read(file[GROUP], "step").tolist() if storing.has(file, GROUP) else []
    return numbers


def read(file: h5py.File, step: int, places: Sequence[Place]) -> dict[str, np.ndarray]:
    """A step's saliencies by tensor, float32; NaN where a weight had gone before."""
    group, row = file[GROUP], steps(file).index(step)
    values = group["values"][row].astype(np.float64) * float(group["scale"][row])
    return {p.name: values[p.start : p.stop].reshape(p.shape).astype(np.float32) for p in places}


def check(file: h5py.File, count: int, last: int) -> None:
    """Hold them against the run's weights and steps.

    Raises:
        ResultsError: If they are not what :func:`append` leaves.
    """
    if not storing.has(file, GROUP):
        return
    group = file[GROUP]
    lacking = [name for name in ("step", "scale", "values") if not storing.has(group, name)]
    if lacking:
        raise ResultsError(f"{GROUP}: no {', '.join(lacking)}")
    shapes = {name: group[name].shape for name in ("step", "scale", "values")}
    numbers = steps(file) if len(shapes["step"]) == 1 else []
    fits = shapes["step"] == shapes["scale"] == (len(numbers),) and shapes["values"] == (len(numbers), count)
    if not fits or group["values"].dtype.kind != "f":
        raise ResultsError(f"{GROUP}: not a row of {count} numbers for each step")
    if any(a >= b for a, b in zip([0, *numbers], [*numbers, last + 1], strict=True)):
        raise ResultsError(f"{GROUP}/step: not increasing numbers of existing steps")
