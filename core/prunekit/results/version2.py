"""How format 2 stores things: one mask history, and everything under a checksum."""

from __future__ import annotations

from functools import cached_property

import h5py
import numpy as np

from prunekit.errors import ResultsError
from prunekit.records import Plain
from prunekit.results import checking, history, probes, rankings, storing
from prunekit.results.format import ATTEMPT_COLUMNS, METRIC_COLUMNS, PHASES, member
from prunekit.results.history import Place
from prunekit.results.rows import further, number, step_rows


class Version2:
    """Reads an open file; what it cannot read raises whatever h5py raises."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file

    def summary(self) -> dict[str, Plain]:
        """What the file's own version adds to the keys that every version has."""
        file = self._file
        summary = {
            "spec": storing.read_json(file, "spec/resolved"),
            "origins": storing.read_json(file, "spec/origins"),
            "environment": storing.read_json(file, "environment"),
            "prunable": int(file["prunable"].attrs["count"]),
            **{phase: self._metrics(phase) for phase in PHASES},
            "steps": self._steps(),
            "attempts": self._attempts(),
            "probes": {
                label: probes.summary(label, file["probes"][label])
                for label in storing.members(file, "probes")
            },
        }
        if storing.has(file, "spec/hash"):
            summary["spec_hash"] = storing.read_text(file, "spec/hash")
        for name in ("inputs", "warnings", "resumptions", "stopped"):
            if storing.has(file, name):
                summary[name] = storing.read_json(file, name)
        return summary

    def masks(self, step: int) -> dict[str, np.ndarray]:
        """Masks after a step, True = kept; step 0 is before the first."""
        return history.masks(self._gone, self._places, step)

    def weights(self, phase: str) -> dict[str, np.ndarray]:
        """Parameters and buffers of a phase that is there."""
        group = self._file[f"weights/{phase}"]
        return {n: storing.read(group, member(n)).reshape(shape) for n, shape in self.parameters().items()}

    def phases(self) -> list[str]:
        """Phases whose weights are there."""
        return [phase for phase in PHASES if storing.has(self._file, f"weights/{phase}")]

    def examples(self, step: int) -> np.ndarray:
        """Indices of a step's examples."""
        group = self._file["examples"]
        start, count = group["start"][step - 1], group["count"][step - 1]
        indices: np.ndarray = group["indices"][start : start + count].astype(np.int64)
        return indices

    def ranked(self) -> list[int]:
        """Steps whose saliencies are kept."""
        return rankings.steps(self._file)

    def saliencies(self, step: int) -> dict[str, np.ndarray]:
        """Saliencies of such a step, float32; NaN where a weight had gone before."""
        return rankings.read(self._file, step, self._places)

    def check_rankings(self, count: int, last: int) -> None:
        """Hold saliencies against the number of weights and of steps."""
        rankings.check(self._file, count, last)

    def samples(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Where each step's sample begins, how long it is, and how many indices there are."""
        if not storing.has(self._file, "examples"):
            return np.zeros(0, np.int64), np.zeros(0, np.int64), 0
        group = self._file["examples"]
        return storing.read(group, "start"), storing.read(group, "count"), len(group["indices"])

    def history(self, phase: str) -> dict[str, np.ndarray]:
        """Columns over a phase's epochs."""
        path = f"training/{phase}"
        return {name: storing.read(self._file[path], name) for name in storing.members(self._file, path)}

    def moments(self, label: str) -> dict[str, int]:
        """How often a probe measured, by moment."""
        path = f"probes/{label}"
        return probes.moments(self._file[path]) if storing.has(self._file, path) else {}

    def probe_kind(self, label: str) -> str:
        """The name of the probe under a label."""
        return str(storing.plain(self._file[f"probes/{label}"].attrs["kind"])).removeprefix("probe:")

    def headline(self, label: str) -> list[str]:
        """Keys of a probe's summary that say most."""
        return probes.headline(self._file[f"probes/{label}"])

    def probe(self, label: str, moment: str) -> probes.Arrays:
        """A probe's arrays at a moment, by group."""
        return probes.read(self._file[f"probes/{label}/{moment}"])

    def attributes(self, label: str, moment: str) -> dict[str, Plain]:
        """What a probe has noted beside the arrays of a moment."""
        attributes = self._file[f"probes/{label}/{moment}"].attrs
        return {name: storing.plain(attributes[name]) for name in attributes}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Prunable tensors and their shapes."""
        return {place.name: place.shape for place in self._places}

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Parameters and buffers of every phase, and their shapes."""
        if not storing.has(self._file, "weights/tensors"):
            return {}
        return checking.shapes("weights/tensors", storing.read_json(self._file, "weights/tensors"))

    def pruned(self, steps: int) -> np.ndarray:
        """Pruned weights after each step, of each tensor: ``[steps, L]``."""
        total = self._places[-1].stop if self._places else 0
        self._check_gone(total, steps)
        if not steps:  # before the first one nothing is stored
            return np.zeros((0, len(self._places)), np.int64)
        gone = self._gone
        if gone.size and int(gone.max()) > steps:
            raise ResultsError(f"masks/gone names step {int(gone.max())}, and there are {steps}")
        counts = [np.bincount(gone[p.start : p.stop], minlength=steps + 1)[1:].cumsum() for p in self._places]
        return np.stack(counts, axis=1) if counts else np.zeros((steps, 0), np.int64)

    def _check_gone(self, total: int, steps: int) -> None:
        """Refuse a mask history of another size, before it is read: it may claim more than there is."""
        if not storing.has(self._file, history.GONE):
            shape, dtype, stored = (0,), np.dtype(np.uint8), total
        else:
            data = self._file[history.GONE]
            shape, dtype, stored = data.shape, data.dtype, data.id.get_storage_size()
        if (steps and shape != (total,)) or dtype.kind != "u":
            raise ResultsError(f"masks/gone is {dtype} of shape {shape}; there are {total} weights")
        if steps and total and not stored:
            raise ResultsError(f"masks/gone is empty, and there are {steps} steps")

    @cached_property
    def _places(self) -> list[Place]:
        tensors = storing.read_json(self._file, "prunable/tensors")
        places = history.places(checking.shapes("prunable/tensors", tensors))
        for tensor, place in zip(tensors, places, strict=True):
            if (tensor.get("start"), tensor.get("stop")) != (place.start, place.stop):
                raise ResultsError(
                    f"prunable/tensors: {place.name} does not start where the one before it ends"
                )
        return places

    @cached_property
    def _gone(self) -> np.ndarray:
        # Kept, since masks are asked for step after step and all come from here; a byte or two per weight.
        if not storing.has(self._file, history.GONE):
            return np.zeros(0, np.uint8)
        return storing.read(self._file, history.GONE)

    def _metrics(self, phase: str) -> dict[str, float | None] | None:
        path = f"metrics/{phase}"
        if not storing.has(self._file, path):
            return None
        there = storing.members(self._file, path)
        group = self._file[path]
        names = (*METRIC_COLUMNS, *further(there))
        return {name: number(storing.read(group, name)[0]) for name in names if name in there}

    def _steps(self) -> list[dict[str, Plain]]:
        if not storing.has(self._file, "steps"):
            return []
        group = self._file["steps"]
        return step_rows({name: storing.read(group, name) for name in group}, [p.name for p in self._places])

    def _attempts(self) -> list[dict[str, Plain]]:
        if not storing.has(self._file, "attempts"):
            return []
        group = self._file["attempts"]
        there = storing.members(self._file, "attempts")
        columns = {name: storing.read(group, name).tolist() for name in ATTEMPT_COLUMNS if name in there}
        measured = storing.read_json_lines(group, "measured")
        rows = []
        for *values, measurement in zip(*columns.values(), measured, strict=True):
            row = dict(zip(columns, values, strict=True))
            numbers = {n: number(v) for n, v in row.items() if ATTEMPT_COLUMNS[n] == "float64"}
            rows.append(
                {"damping": None}
                | row
                | numbers
                | {"accepted": bool(row["accepted"]), "measured": measurement}
            )
        return rows
