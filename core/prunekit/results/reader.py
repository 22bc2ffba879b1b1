"""Read a results file: numpy and h5py only."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

from prunekit.errors import ResultsError
from prunekit.results.format import FORMAT, FORMAT_VERSION, PHASES, STATUSES
from prunekit.results.layout import LAYOUTS, Arrays, Layout
from prunekit.results.storing import plain, reading

_FIRST_CHOICE = ("end", "step", "finetuned", "pruned", "dense")


class Results:
    """A results file, read-only. It shows the run as it was when the file was opened.

    Attributes:
        path: The file.
        summary: The object that ``prunekit inspect --json`` prints.
    """

    def __init__(self, path: Path, file: h5py.File, layout: Layout, summary: dict[str, Any]) -> None:
        self.path = path
        self.summary = summary
        self._file = file
        self._layout = layout

    @property
    def finished(self) -> dict[str, int]:
        """How much of the run is finished: epochs, steps, attempts, phases, and what probes found but at steps."""
        return {
            "dense epochs": len(self.history("dense").get("epoch", ())),
            "finetuned epochs": len(self.history("finetuned").get("epoch", ())),
            "steps": len(self.summary["steps"]),
            "phases": sum(self.summary[phase] is not None for phase in PHASES),
            "attempts": len(self.summary["attempts"]),
            "probes": sum(
                moment != "step" for label in self.summary["probes"] for moment in self.moments(label)
            ),
        }

    def masks(self, step: int) -> dict[str, np.ndarray]:
        """Masks after a step (from 1; 0 is before the first): bool arrays, True = kept."""
        self._check_step(step)
        with self._reading() as layout:
            return layout.masks(step)

    def weights(self, phase: str) -> dict[str, np.ndarray]:
        """Parameters and buffers of the ``dense``, ``pruned`` or ``finetuned`` network.

        Raises:
            ResultsError: If there are none, saying which there are.
        """
        with self._reading() as layout:
            there = layout.phases()
            if phase not in there:
                raise ResultsError(
                    f"{self.path}: no {phase!r} weights; there are {', '.join(there) or 'none yet'}"
                )
            return layout.weights(phase)

    def examples(self, step: int) -> np.ndarray:
        """Indices into the training split that a step's statistics came from."""
        self._check_step(step)
        if step == 0:
            raise ResultsError(f"{self.path}: steps count from 1")
        with self._reading() as layout:
            return layout.examples(step)

    def history(self, phase: str) -> dict[str, np.ndarray]:
        """Columns over the training epochs of ``dense`` or ``finetuned``; empty if there were none."""
        with self._reading() as layout:
            return layout.history(phase)

    def probe(self, name: str, moment: str | None = None) -> Arrays:
        """Arrays of a probe, by group.

        Args:
            name: Its label.
            moment: ``dense``, ``step``, ``pruned``, ``finetuned`` or ``end``. At ``step`` every array has a
                leading axis, a row per step at which the probe measured; ``summary["probes"][name]["steps"]``
                says which. Left out: ``end``, where the probe measured then; else ``step``; else the last one.

        Raises:
            ResultsError: If the run has no such probe, or it did not measure then.
        """
        with self._reading() as layout:
            moments = layout.moments(name) if name in self.summary["probes"] else {}
            if not moments:
                raise self._no_probe(name)
            if moment is None:
                moment = next(choice for choice in _FIRST_CHOICE if choice in moments)
            if moment not in moments:
                raise ResultsError(
                    f"{self.path}: probe {name!r} found nothing at {moment!r}, but at {', '.join(moments)}"
                )
            return layout.probe(name, moment)

    @property
    def probes(self) -> Mapping[str, Arrays]:
        """Each probe's label to what :meth:`probe` finds for it."""
        return _Probes(self)

    def moments(self, name: str) -> dict[str, int]:
        """How often a probe measured, by moment in the order of a run; nothing if the run has no such probe."""
        with self._reading() as layout:
            return layout.moments(name) if name in self.summary["probes"] else {}

    def probe_kind(self, name: str) -> str:
        """The name of the probe that a label stands for.

        Raises:
            ResultsError: If the run has no such probe.
        """
        if name not in self.summary["probes"]:
            raise self._no_probe(name)
        with self._reading() as layout:
            return layout.probe_kind(name)

    def _no_probe(self, name: str) -> ResultsError:
        there = ", ".join(self.summary["probes"]) or "none"
        return ResultsError(f"{self.path}: no probe {name!r}; there are {there}")

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

    def _check_step(self, step: int) -> None:
        count = len(self.summary["steps"])
        if not 0 <= step <= count:
            raise ResultsError(f"{self.path}: no step {step}; there are {count} finished steps, from 1")

    @contextmanager
    def _reading(self) -> Iterator[Layout]:
        if not self._file:
            raise ResultsError(f"{self.path}: has been closed")
        try:
            yield self._layout
        except ResultsError:
            raise
        except Exception as error:  # h5py raises many kinds on damaged bytes
            raise ResultsError(f"{self.path}: damaged: {type(error).__name__}: {error}") from None


class _Probes(Mapping[str, Arrays]):
    """Arrays of probes, read when asked for."""

    def __init__(self, results: Results) -> None:
        self._results = results

    def __getitem__(self, name: str) -> Arrays:
        if name not in self._results.summary["probes"]:
            raise KeyError(name)
        return self._results.probe(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._results.summary["probes"])

    def __len__(self) -> int:
        return len(self._results.summary["probes"])


def open_results(path: str | Path) -> Results:
    """Open a results file, also while its run goes on.

    Raises:
        ResultsError: If it is missing, damaged, not a results file, or of a newer format.
    """
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise ResultsError(f"{path}: no such file")
    if not h5py.is_hdf5(path):
        raise ResultsError(f"{path}: not a prunekit results file (not HDF5), or truncated")
    try:
        file = reading(path)
    except OSError as error:
        raise ResultsError(f"{path}: damaged or truncated ({error})") from None
    try:
        version = _check_format(path, file)
        layout = LAYOUTS[version](file)
        return Results(path, file, layout, _summary(file, version, layout))
    except ResultsError:
        file.close()
        raise
    except Exception as error:  # h5py raises many kinds on damaged bytes
        file.close()
        raise ResultsError(f"{path}: damaged: {type(error).__name__}: {error}") from None


def _check_format(path: Path, file: h5py.File) -> int:
    """The format's version, if this prunekit reads it."""
    file_format = plain(file.attrs.get("format", b""))
    if file_format != FORMAT:
        raise ResultsError(f"{path}: HDF5, but not a prunekit results file (no attribute format={FORMAT!r})")
    version = int(file.attrs["format_version"])
    if version > FORMAT_VERSION:
        writer = plain(file.attrs.get("prunekit_version", b""))
        raise ResultsError(
            f"{path}: written in format {version} by prunekit {writer or '?'}; this prunekit reads up to "
            f"{FORMAT_VERSION}. Install prunekit {writer} or newer."
        )
    status = plain(file.attrs["status"])
    if version not in LAYOUTS or status not in STATUSES:
        raise ResultsError(f"{path}: damaged: unknown status {status!r} or format {version}")
    return version


def _summary(file: h5py.File, version: int, layout: Layout) -> dict[str, Any]:
    """The summary in its order; what older versions do not have is there and says so."""
    stored = layout.summary()
    order = ("spec", "origins", "environment", "prunable", "dense", "steps", "pruned", "finetuned", "probes")
    return {
        "format": FORMAT,
        "format_version": version,
        "prunekit_version": plain(file.attrs["prunekit_version"]),
        "status": plain(file.attrs["status"]),
        **{key: stored[key] for key in order},
        "spec_hash": stored.get("spec_hash"),
        "inputs": stored.get("inputs", {}),
        "warnings": stored.get("warnings", []),
        "resumptions": stored.get("resumptions", []),
        "attempts": stored.get("attempts", []),
    }
