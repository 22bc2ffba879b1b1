"""Read a results file: numpy and h5py only."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

from prunekit.errors import ResultsError
from prunekit.results.format import (
    FORMAT,
    FORMAT_VERSION,
    INTEGER_COLUMNS,
    METRIC_COLUMNS,
    PHASES,
    STATUSES,
)


class Results:
    """A results file, read-only. It shows the run as it was when the file was opened.

    Attributes:
        path: The file.
        summary: The object that ``prunekit inspect --json`` prints.
    """

    def __init__(self, path: Path, file: h5py.File, summary: dict[str, Any]) -> None:
        self.path = path
        self.summary = summary
        self._file = file

    @property
    def finished(self) -> dict[str, int]:
        """How much of the run is finished: epochs, steps, phases, probes."""
        return {
            "dense epochs": len(self.history("dense").get("epoch", ())),
            "finetuned epochs": len(self.history("finetuned").get("epoch", ())),
            "steps": len(self.summary["steps"]),
            "phases": sum(self.summary[phase] is not None for phase in PHASES),
            "probes": len(self.summary["probes"]),
        }

    def masks(self, step: int) -> dict[str, np.ndarray]:
        """Masks after a step (from 1; 0 is before the first): bool arrays, True = kept."""
        row = self._row(step)
        found = {}
        with self._reading() as file:
            for name in file["prunable/names"].asstr()[()]:
                data = file["masks"][name]
                shape = tuple(data.attrs["shape"])
                if row < 0:
                    found[name] = np.ones(shape, dtype=bool)
                else:
                    bits = np.unpackbits(data[row], count=int(np.prod(shape)))
                    found[name] = bits.astype(bool).reshape(shape)
        return found

    def weights(self, phase: str) -> dict[str, np.ndarray]:
        """Parameters and buffers of the ``dense``, ``pruned`` or ``finetuned`` network.

        Raises:
            ResultsError: If there are none, saying which there are.
        """
        with self._reading() as file:
            there = [p for p in PHASES if f"weights/{p}" in file]
            if phase not in there:
                raise ResultsError(
                    f"{self.path}: no {phase!r} weights; there are {', '.join(there) or 'none yet'}"
                )
            group = file[f"weights/{phase}"]
            names = file["weights/names"].asstr()[()]
            return {name: np.asarray(group[name][()]) for name in names}

    def examples(self, step: int) -> np.ndarray:
        """Indices into the training split that a step's statistics came from."""
        row = self._row(step)
        if row < 0:
            raise ResultsError(f"{self.path}: steps count from 1")
        with self._reading() as file:
            data = file["examples"]
            found: np.ndarray = data[0 if data.attrs["sample"] == "fixed" else row]
            return found

    def history(self, phase: str) -> dict[str, np.ndarray]:
        """Columns over the training epochs of ``dense`` or ``finetuned``; empty if there were none."""
        with self._reading() as file:
            group = file.get(f"training/{phase}", {})
            return {name: data[()] for name, data in group.items()}

    def probe(self, name: str) -> dict[str, dict[str, np.ndarray]]:
        """Arrays of a probe, by group.

        Raises:
            ResultsError: If the run has no such probe.
        """
        with self._reading() as file:
            probe = file.get(f"probes/{name}")
            if probe is None:
                there = ", ".join(file.get("probes", {})) or "none"
                raise ResultsError(f"{self.path}: no probe {name!r}; there are {there}")
            return {
                key: {label: data[()] for label, data in group.items()}
                for key, group in probe.items()
                if isinstance(group, h5py.Group)
            }

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Results {self.path} ({self.summary['status']}, {len(self.summary['steps'])} steps)>"

    def _row(self, step: int) -> int:
        count = len(self.summary["steps"])
        if not 0 <= step <= count:
            raise ResultsError(f"{self.path}: no step {step}; there are {count} finished steps, from 1")
        return step - 1

    @contextmanager
    def _reading(self) -> Iterator[h5py.File]:
        if not self._file:
            raise ResultsError(f"{self.path}: has been closed")
        try:
            yield self._file
        except ResultsError:
            raise
        except Exception as error:  # h5py raises many kinds on damaged bytes
            raise ResultsError(f"{self.path}: damaged: {type(error).__name__}: {error}") from None


def open_results(path: str | Path) -> Results:
    """Open a results file, also while its run goes on.

    Raises:
        ResultsError: If it is missing, damaged, not a results file, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise ResultsError(f"{path}: no such file")
    if not h5py.is_hdf5(path):
        raise ResultsError(f"{path}: not a prunekit results file (not HDF5), or truncated")
    try:
        file = _open(path)
    except OSError as error:
        raise ResultsError(f"{path}: damaged or truncated ({error})") from None
    try:
        _check_format(path, file)
        return Results(path, file, _summary(file))
    except ResultsError:
        file.close()
        raise
    except Exception as error:  # h5py raises many kinds on damaged bytes
        file.close()
        raise ResultsError(f"{path}: damaged: {type(error).__name__}: {error}") from None


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "locking" not in str(error):
            raise
        return h5py.File(path, "r")  # this process has it open already, with locks; the two must agree


def _check_format(path: Path, file: h5py.File) -> None:
    found = file.attrs.get("format")
    if isinstance(found, bytes):
        found = found.decode("utf-8", "replace")
    if found != FORMAT:
        raise ResultsError(f"{path}: HDF5, but not a prunekit results file (no attribute format={FORMAT!r})")
    version = int(file.attrs["format_version"])
    if version > FORMAT_VERSION:
        raise ResultsError(
            f"{path}: written in format {version} by prunekit {file.attrs.get('prunekit_version', '?')}; this "
            f"prunekit reads up to {FORMAT_VERSION}. Install prunekit {file.attrs.get('prunekit_version', '')} or newer."
        )
    if file.attrs["status"] not in STATUSES:
        raise ResultsError(f"{path}: damaged: unknown status {file.attrs['status']!r}")


def _summary(file: h5py.File) -> dict[str, Any]:
    metrics = {phase: _metrics(file.get(f"metrics/{phase}")) for phase in PHASES}
    probes = file.get("probes", {})
    return {
        "format": FORMAT,
        "format_version": int(file.attrs["format_version"]),
        "prunekit_version": str(file.attrs["prunekit_version"]),
        "status": str(file.attrs["status"]),
        "spec": _json(file["spec/resolved"]),
        "origins": _json(file["spec/origins"]),
        "environment": _json(file["environment"]),
        "prunable": int(file["prunable"].attrs["count"]),
        "dense": metrics["dense"],
        "steps": _steps(file),
        "pruned": metrics["pruned"],
        "finetuned": metrics["finetuned"],
        "probes": {name: _json(probes[name]["summary"]) for name in probes},
    }


def _json(data: h5py.Dataset) -> Any:
    # Python writes NaN and infinity where JSON has neither; what is not finite is null.
    return json.loads(data.asstr()[()], parse_constant=lambda _: None)


def _metrics(group: Mapping[str, Any] | None) -> dict[str, float | None] | None:
    if group is None:
        return None
    return {name: _number(group[name][()]) for name in METRIC_COLUMNS if name in group}


def _steps(file: h5py.File) -> list[dict[str, Any]]:
    group = file["steps"]
    names = file["prunable/names"].asstr()[()]
    order = [
        "step",
        "target_sparsity",
        "sparsity",
        "pruned",
        "remaining",
        "predicted_delta_loss",
        "delta_loss",
    ]
    columns = [c for c in (*order, *METRIC_COLUMNS, "seconds") if c in group]
    arrays = {c: group[c][()] for c in columns}
    layers = group["layers"][()]
    rows = []
    for i in range(len(layers)):
        row: dict[str, Any] = {
            c: int(a[i]) if c in INTEGER_COLUMNS else _number(a[i]) for c, a in arrays.items()
        }
        seconds = row.pop("seconds")
        row["layers"] = {str(n): float(s) for n, s in zip(names, layers[i], strict=True)}
        row["seconds"] = seconds
        rows.append(row)
    return rows


def _number(value: Any) -> float | None:
    """A float, or None for NaN (not measured, or not finite): JSON has neither NaN nor infinity."""
    number = float(value)
    return number if math.isfinite(number) else None
