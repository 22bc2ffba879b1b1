"""How format 1, written by prunekit 0.1, stores things: a row of packed bits per step and tensor, no checksums."""

from __future__ import annotations

import math
from typing import Any

import h5py
import numpy as np

from prunekit.errors import ResultsError
from prunekit.records import Plain
from prunekit.results import checking, storing
from prunekit.results.format import METRIC_COLUMNS, PHASES
from prunekit.results.rows import number, step_rows


class Version1:
    """Reads an open file; what it cannot read raises whatever h5py raises."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file

    def summary(self) -> dict[str, Plain]:
        """What the file's own version adds to the keys that every version has."""
        file = self._file
        probes = file.get("probes", {})
        return {
            "spec": _json(file["spec/resolved"]),
            "origins": _json(file["spec/origins"]),
            "environment": _json(file["environment"]),
            "prunable": int(file["prunable"].attrs["count"]),
            **{phase: self._metrics(phase) for phase in PHASES},
            "steps": step_rows({name: data[()] for name, data in file["steps"].items()}, self._names()),
            "probes": {name: _json(probes[name]["summary"]) for name in probes},
        }

    def masks(self, step: int) -> dict[str, np.ndarray]:
        """Masks after a step, True = kept; step 0 is before the first."""
        masks = {}
        for name in self._names():
            data = self._file["masks"][name]
            shape = tuple(data.attrs["shape"])
            if step == 0:
                masks[name] = np.ones(shape, dtype=bool)
            else:
                bits = np.unpackbits(data[step - 1], count=math.prod(shape))
                masks[name] = bits.astype(bool).reshape(shape)
        return masks

    def weights(self, phase: str) -> dict[str, np.ndarray]:
        """Parameters and buffers of a phase that is there."""
        group = self._file[f"weights/{phase}"]
        names = self._file["weights/names"].asstr()[()]
        return {name: np.asarray(group[name][()]) for name in names}

    def phases(self) -> list[str]:
        """Phases whose weights are there."""
        return [phase for phase in PHASES if f"weights/{phase}" in self._file]

    def examples(self, step: int) -> np.ndarray:
        """Indices of a step's examples."""
        data = self._file["examples"]
        indices: np.ndarray = data[0 if data.attrs["sample"] == "fixed" else step - 1]
        return indices

    def samples(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Where each step's sample begins, how long it is, and how many indices there are."""
        if "examples" not in self._file:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), 0
        rows, size = self._file["examples"].shape
        return np.arange(rows) * size, np.full(rows, size), rows * size

    def history(self, phase: str) -> dict[str, np.ndarray]:
        """Columns over a phase's epochs."""
        group = self._file.get(f"training/{phase}", {})
        return {name: data[()] for name, data in group.items()}

    def moments(self, label: str) -> dict[str, int]:
        """How often a probe measured, by moment; this version knows only the run's end."""
        return {"end": 1} if f"probes/{label}" in self._file else {}

    def probe_kind(self, label: str) -> str:
        """The name of the probe under a label."""
        return label

    def ranked(self) -> list[int]:
        """Steps whose saliencies are kept: this version keeps none."""
        return []

    def saliencies(self, step: int) -> dict[str, np.ndarray]:
        """There are none."""
        raise KeyError(step)

    def check_rankings(self, count: int, last: int) -> None:
        """There is nothing to look at."""

    def headline(self, label: str) -> list[str]:
        """Keys of a probe's summary that say most, which this version does not name."""
        return []

    def probe(self, label: str, moment: str) -> dict[str, dict[str, np.ndarray]]:
        """A probe's arrays, by group."""
        return {
            key: {name: data[()] for name, data in group.items()}
            for key, group in self._file[f"probes/{label}"].items()
            if isinstance(group, h5py.Group)
        }

    def attributes(self, label: str, moment: str) -> dict[str, Plain]:
        """What a probe has noted beside its arrays."""
        attributes = self._file[f"probes/{label}"].attrs
        return {name: storing.plain(attributes[name]) for name in attributes}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Prunable tensors and their shapes."""
        named = _json(self._file["prunable/shapes"])
        return checking.shapes("prunable/shapes", [{"name": n, "shape": named[n]} for n in self._names()])

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Parameters and buffers of every phase, and their shapes."""
        there = self.phases()
        if not there:
            return {}
        group, names = self._file[f"weights/{there[0]}"], self._file["weights/names"].asstr()[()]
        return checking.shapes("weights", [{"name": n, "shape": list(group[n].shape)} for n in names])

    def pruned(self, steps: int) -> np.ndarray:
        """Pruned weights after each step, of each tensor: ``[steps, L]``."""
        counts = []
        for name, shape in self.tensors().items():
            rows = self._file["masks"][name][()]
            size = math.prod(shape)
            if rows.shape != (steps, -(-size // 8)) or rows.dtype != np.uint8:
                raise ResultsError(f"masks/{name} is {rows.dtype} of shape {rows.shape}")
            if (rows[1:] & ~rows[:-1]).any():
                raise ResultsError(f"masks/{name} keeps a weight that was pruned at an earlier step")
            counts.append(size - np.unpackbits(rows, axis=1, count=size).sum(axis=1, dtype=np.int64))
        return np.stack(counts, axis=1) if counts else np.zeros((steps, 0), np.int64)

    def _names(self) -> list[str]:
        names: list[str] = self._file["prunable/names"].asstr()[()].tolist()
        return names

    def _metrics(self, phase: str) -> dict[str, float | None] | None:
        group = self._file.get(f"metrics/{phase}")
        if group is None:
            return None
        return {name: number(group[name][()]) for name in METRIC_COLUMNS if name in group}


def _json(data: h5py.Dataset) -> Any:
    return storing.parse_json(data.asstr()[()])
