"""The mask history: for every prunable weight, the number of the step at which it went.

One flat array over all prunable tensors, so that a step costs the same whether they are five or five thousand, and
however many steps there were. While the run goes on it lies uncompressed in chunks that never move, so a step
overwrites it in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from prunekit.errors import RunError
from prunekit.results import storing
from prunekit.results.space import Extent

GONE = "masks/gone"
KEPT = 0
_CHUNK = 1 << 18  # weights


@dataclass(frozen=True)
class Place:
    """Where a prunable tensor is in the history."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


def places(shapes: Mapping[str, Sequence[int]]) -> list[Place]:
    """Tensors one after the other, each in C order."""
    tensors, start = [], 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        tensors.append(Place(name, tuple(shape), start, stop))
        start = stop
    return tensors


def smallest(steps: int) -> np.dtype[Any]:
    """The smallest unsigned type that can count so many steps."""
    return np.min_scalar_type(steps)


def create(file: h5py.File, count: int, dtype: np.dtype[Any], gone: np.ndarray | None = None) -> None:
    """Make the history of ``count`` weights; where nothing was written, everything is kept.

    Args:
        file: Open for writing.
        count: D.
        dtype: Unsigned.
        gone: A whole history, which is then compressed.
    """
    chunk = storing.chunks((count,), 1, _CHUNK)
    if gone is None:
        storing.create(file, GONE, (count,), dtype, chunk=chunk)
    else:
        storing.store(file, GONE, gone.astype(dtype, copy=False), chunk, compress=True)
    storing.describe(file[GONE].id, ("weight",), "step")


def write(file: h5py.File, gone: np.ndarray) -> None:
    """Overwrite the history."""
    h5py.h5d.open(file.id, GONE.encode()).write(h5py.h5s.ALL, h5py.h5s.ALL, gone)


def extents(file: h5py.File) -> list[Extent]:
    """Where the history lies in the file, in those chunks that :func:`write` overwrites wholly.

    The last chunk may reach beyond the last weight. HDF5 reads such a one before it writes into it.
    """
    data = h5py.h5d.open(file.id, GONE.encode())
    spans: list[Extent] = []
    (count,), (chunk,) = data.shape, data.get_create_plist().get_chunk()

    def note(info: Any) -> None:
        if info.chunk_offset[0] + chunk <= count:
            spans.append((info.byte_offset, info.byte_offset + info.size))

    data.chunk_iter(note)
    return spans


def advance(gone: np.ndarray, tensors: Sequence[Place], masks: Mapping[str, np.ndarray], step: int) -> None:
    """Note in place what the masks of a step have dropped since the step before.

    Raises:
        RunError: If they keep a weight that went earlier; the history has no way back.
    """
    for place in tensors:
        part, mask = gone[place.start : place.stop], masks[place.name].reshape(-1)
        for start in range(0, part.size, _CHUNK):  # by parts that stay in the processor's cache
            here = slice(start, start + _CHUNK)
            before = part[here] == KEPT
            if np.greater(mask[here], before).any():
                raise RunError(
                    f"step {step}: the mask of {place.name} revives a weight that was pruned earlier"
                )
            part[here] |= np.greater(before, mask[here]) * part.dtype.type(step)  # 0 until now, where it goes


def masks(gone: np.ndarray, tensors: Sequence[Place], step: int) -> dict[str, np.ndarray]:
    """Masks after a step, True = kept; step 0 is before the first."""
    kept = gone == KEPT
    kept |= gone > step
    return {p.name: kept[p.start : p.stop].reshape(p.shape) for p in tensors}
