"""Whether a results file is whole: everything in it is read, and held against the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import h5py
import numpy as np

from prunekit.errors import ResultsError, pass_interruption
from prunekit.records import Row
from prunekit.results import checking, storing
from prunekit.results.layout import Layout
from prunekit.results.structure import Held

_PIECE = 1 << 26  # bytes that are read at once


@dataclass(frozen=True)
class Whole:
    """What was read of a file, and found to be right.

    Attributes:
        arrays: Data sets.
        bytes: In them.
        checksums: Whether all of them lie under checksums; format 1 has none.
    """

    arrays: int
    bytes: int
    checksums: bool


def verify(
    file: h5py.File, layout: Layout, summary: Row, held: Mapping[str, Held], weights: bool = True
) -> Whole:
    """Read everything, and hold masks against counts and, unless that is left out, weights against masks.

    Raises:
        ResultsError: Naming what is damaged.
    """
    read = read_all(file, held)
    checked = all(0 in data.shape or file[name].fletcher32 for name, data in held.items())
    if summary["format_version"] > 1 and not checked:
        bare = next(name for name, data in held.items() if 0 not in data.shape and not file[name].fletcher32)
        raise ResultsError(f"{bare} has no checksum")
    if summary["prunable"]:
        checking.check_masks(layout, summary)
    if weights:
        _check_weights(layout, summary)
    return Whole(len(held), read, checked)


def read_all(file: h5py.File, held: Mapping[str, Held]) -> int:
    """Read every data set, so that HDF5 compares every checksum; their bytes.

    Raises:
        ResultsError: Naming the one that is damaged.
    """
    read = 0
    for name in held:
        try:
            read += _read(file, name)
        except Exception as error:  # h5py raises many kinds on damaged bytes
            pass_interruption(error)
            raise ResultsError(f"{name} cannot be read: {error}") from None
    return read


def _read(file: h5py.File, name: str) -> int:
    """Read a data set piece by piece; its bytes."""
    data = h5py.h5d.open(file.id, name.encode())
    size: int = math.prod(data.shape) * data.get_type().get_size()
    if data.get_type().get_class() == h5py.h5t.STRING or not data.shape:
        np.asarray(file[name][()])
    elif size <= _PIECE:
        storing.read(file, name)
    elif data.get_storage_size():  # else nothing of it was written
        rows = file[name]
        step = max(1, _PIECE * data.shape[0] // size)
        for start in range(0, data.shape[0], step):
            rows[start : start + step]
    return size


def _check_weights(layout: Layout, summary: Row) -> None:
    """A pruned weight is exactly zero."""
    if not summary["steps"]:
        return
    masks = layout.masks(len(summary["steps"]))
    for phase in ("pruned", "finetuned"):
        weights = layout.weights(phase) if summary[phase] is not None else {}
        for name, mask in masks.items():
            if name in weights and weights[name][~mask].any():
                raise ResultsError(f"weights/{phase}/{name}: not zero where the masks prune it")
