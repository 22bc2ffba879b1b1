"""Write a results file so that a kill at any moment leaves the last finished state of it.

Every change is made to a copy, which then takes the file's name in one atomic rename. Readers never meet
a file in the middle of a change and never wait for a lock. Copying costs memory bandwidth only: the bytes
go through the page cache, and nothing waits for the disk before the run is complete.

The HDF5 library does not survive a disk that fills up while it writes. So space is set aside before it
starts, and a new file is made in memory.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prunekit.errors import RunError
from prunekit.results.format import (
    FLOAT_COLUMNS,
    FORMAT,
    FORMAT_VERSION,
    INTEGER_COLUMNS,
    METRIC_COLUMNS,
    units,
)
from prunekit.results.space import reserve

Row = Mapping[str, Any]

_ROOM = 1 << 20  # bytes set aside for a change besides its arrays
_ROOM_PER_ARRAY = 1 << 13  # headers and chunk indices


class ResultsWriter:
    """Edits one results file.

    Args:
        path: The file; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(
        self,
        version: str,
        spec: Row,
        origins: Row,
        text: str,
        environment: Row,
        shapes: Mapping[str, Sequence[int]],
        metric_columns: Sequence[str] = METRIC_COLUMNS,
    ) -> None:
        """Start the file, replacing one that is there."""
        with self._edit(fresh=True) as file:
            file.attrs.update(
                {
                    "format": FORMAT,
                    "format_version": FORMAT_VERSION,
                    "prunekit_version": version,
                    "status": "running",
                }
            )
            group = file.create_group("spec")
            group["resolved"] = json.dumps(spec, indent=1)
            group["origins"] = json.dumps(origins, indent=1)
            group["text"] = text
            file["environment"] = json.dumps(environment, indent=1)
            group = file.create_group("prunable")
            group["names"] = np.array(list(shapes), dtype=h5py.string_dtype())
            group["shapes"] = json.dumps({name: list(shape) for name, shape in shapes.items()})
            group.attrs["count"] = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
            steps = file.create_group("steps")
            for column in (*INTEGER_COLUMNS, *FLOAT_COLUMNS, *metric_columns):
                dtype = np.int64 if column in INTEGER_COLUMNS else np.float64
                _growing(steps, column, (), dtype, ("step",), units(column))
            _growing(steps, "layers", (len(shapes),), np.float64, ("step", "layer"), units("sparsity"))
            masks = file.create_group("masks")
            masks.attrs["packing"] = "numpy.packbits, big-endian bits, True = kept, flat index order"
            for name, shape in shapes.items():
                size = int(np.prod(shape, dtype=np.int64))
                data = _growing(masks, name, (-(-size // 8),), np.uint8, ("step", "byte"), "8 weights")
                data.attrs["shape"] = np.array(shape, dtype=np.int64)

    def add_step(
        self, row: Row, masks: Mapping[str, np.ndarray], examples: np.ndarray, same_examples: bool
    ) -> None:
        """Add a pruning step.

        Args:
            row: Its columns, and ``layers``.
            masks: Bool arrays, True = kept.
            examples: Indices into the training split.
            same_examples: The sample is the same at every step and stored once.
        """
        with self._edit(_size(masks, 1 / 8) + examples.nbytes) as file:
            steps = file["steps"]
            for column in steps:
                value = list(row["layers"].values()) if column == "layers" else row.get(column)
                _append(steps, column, np.nan if value is None else value)
            for name, mask in masks.items():
                _append(file["masks"], name, np.packbits(mask.reshape(-1)))
            if "examples" not in file:
                data = _growing(file, "examples", examples.shape, np.int64, ("step", "example"), "index")
                data.attrs["sample"] = "fixed" if same_examples else "fresh"
            if not (same_examples and len(file["examples"])):
                _append(file, "examples", examples)

    def add_epoch(self, phase: str, row: Row) -> None:
        """Add a training epoch's row to the history of a phase."""
        with self._edit() as file:
            group = file.require_group(f"training/{phase}")
            for column, value in row.items():
                if column not in group:
                    _growing(group, column, (), np.float64, ("epoch",), units(column))
                _append(group, column, np.nan if value is None else value)

    def add_phase(self, phase: str, metrics: Row, weights: Mapping[str, np.ndarray]) -> None:
        """Add the metrics and weights of a finished phase."""
        with self._edit(_size(weights)) as file:
            group = file.create_group(f"metrics/{phase}")
            for name, value in metrics.items():
                group[name] = np.nan if value is None else float(value)
                group[name].attrs["units"] = units(name)
            if "weights/names" not in file:  # not an attribute: those hold 64 KiB at most
                file["weights/names"] = np.array(list(weights), dtype=h5py.string_dtype())
            group = file.create_group(f"weights/{phase}")
            for name, array in weights.items():
                group[name] = array

    def add_probe(
        self, name: str, version: int, summary: Row, attributes: Row, groups: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Add what a probe found; ``groups`` holds objects with ``values``, ``axes`` and ``units``."""
        room = sum(_size({k: np.asarray(s.values) for k, s in arrays.items()}) for arrays in groups.values())
        with self._edit(room) as file:
            probe = file.create_group(f"probes/{name}")
            probe.attrs.update({**attributes, "kind": f"probe:{name}", "kind_version": version})
            probe["summary"] = json.dumps(summary, indent=1)
            for key, arrays in groups.items():
                group = probe.create_group(key)
                for label, series in arrays.items():
                    group[label] = np.asarray(series.values)
                    group[label].attrs["units"] = series.units
                    group[label].attrs["axes"] = list(series.axes)

    def finish(self, status: str, environment: Row) -> None:
        """Set the status and the environment, and wait until the file is on disk."""
        with self._edit(sync=True) as file:
            file.attrs["status"] = status
            del file["environment"]
            file["environment"] = json.dumps(environment, indent=1)

    def set_status(self, status: str) -> None:
        """Set the status alone, as when a run is resumed."""
        with self._edit() as file:
            file.attrs["status"] = status

    def done(self) -> dict[str, Any]:
        """What the file holds: number of steps, epochs per phase, phases, probes; for catching up."""
        with h5py.File(self.path, "r", locking=False) as file:
            training = file.get("training", {})
            return {
                "steps": len(file["steps/step"]),
                "epochs": {phase: len(training[phase]["epoch"]) for phase in training},
                "phases": set(file.get("metrics", {})),
                "probes": set(file.get("probes", {})),
            }

    @contextmanager
    def _edit(self, room: int = 0, fresh: bool = False, sync: bool = False) -> Iterator[h5py.File]:
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            if fresh:
                with h5py.File(temporary, "w", driver="core", backing_store=False) as file:
                    yield file
                    file.flush()
                    image = file.id.get_file_image()
                temporary.write_bytes(image)
            else:
                _copy(self.path, temporary, _ROOM + room)
                with h5py.File(temporary, "r+", locking=False) as file:  # cuts off what it did not need
                    yield file
            if sync:
                with temporary.open("rb+") as raw:
                    os.fsync(raw.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise RunError(
                f"{self.path}: cannot be written ({error}); what was finished before is kept in it"
            ) from error


def _size(arrays: Mapping[str, np.ndarray], share: float = 1.0) -> int:
    return sum(int(a.nbytes * share) + _ROOM_PER_ARRAY for a in arrays.values())


def _copy(source: Path, target: Path, room: int) -> None:
    """Copy a file into one that is longer by ``room`` bytes, all of them sure to be there."""
    with source.open("rb") as old, target.open("wb") as new:
        reserve(new, os.fstat(old.fileno()).st_size + room)
        shutil.copyfileobj(old, new, 1 << 20)


def _growing(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: Any, axes: Sequence[str], unit: str
) -> h5py.Dataset:
    chunk = (64,) if not shape else (1 if np.prod(shape) > 64 else 16, *(max(1, n) for n in shape))
    data = group.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), chunks=chunk)
    data.attrs["units"] = unit
    data.attrs["axes"] = list(axes)
    return data


def _append(group: h5py.Group, name: str, value: Any) -> None:
    # h5py's low-level calls: finding, resizing and assigning through the high-level ones take six times as long.
    dataset = h5py.h5d.open(group.id, name.encode())
    length, *shape = dataset.shape
    dataset.set_extent((length + 1, *shape))
    space = dataset.get_space()
    space.select_hyperslab((length, *(0 for _ in shape)), (1, *shape))
    dataset.write(h5py.h5s.create_simple((1, *shape)), space, np.ascontiguousarray(value))
