"""Read a results file: numpy and h5py only."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import numpy as np

from prunekit.errors import ResultsError, pass_interruption
from prunekit.foreign import unreadable
from prunekit.records import Plain
from prunekit.results import checking, structure
from prunekit.results.format import FORMAT, FORMAT_VERSION, PHASES, STATUSES
from prunekit.results.layout import Arrays, Layout
from prunekit.results.protocol import protocol
from prunekit.results.storing import plain, reading
from prunekit.results.structure import Held
from prunekit.results.verify import Whole, read_all, verify
from prunekit.results.version1 import Version1
from prunekit.results.version2 import Version2

LAYOUTS: dict[int, type[Version1] | type[Version2]] = {1: Version1, 2: Version2}

_ATTRIBUTES = ("format", "format_version", "status", "prunekit_version")
_READ_WHOLLY = 1 << 25
"""Bytes of a file up to which all of it is read when it is opened: no part of a damaged one is shown."""
_FIRST_CHOICE = ("end", "step", "finetuned", "pruned", "dense")


def _is_hdf5(path: Path) -> bool:
    try:
        return bool(h5py.is_hdf5(path))
    except OSError:
        return False


class Results:
    """A results file, read-only. It shows the run as it was when the file was opened.

    Attributes:
        path: The file.
        summary: The object that ``prunekit inspect --json`` prints.
    """

    def __init__(
        self, path: Path, file: h5py.File, layout: Layout, summary: dict[str, Plain], held: Mapping[str, Held]
    ) -> None:
        self.path = path
        self.summary = summary
        self._file = file
        self._layout = layout
        self._held = held
        self._masks_checked = summary["prunable"] <= checking.MANY

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a results file; as :func:`open_results`."""
        path = Path(os.path.expanduser(path))
        why = unreadable(path)
        if why:
            raise ResultsError(f"{path}: {why}")
        if not _is_hdf5(path):
            # A run with --overwrite beside us may have taken it away meanwhile, and put another there.
            why = unreadable(path)
            if why or not _is_hdf5(path):
                raise ResultsError(f"{path}: {why or 'not a prunekit results file (not HDF5), or truncated'}")
        try:
            file = reading(path)
        except OSError as error:
            # A run with --overwrite beside us may have taken it away meanwhile.
            why = unreadable(path) or f"damaged or truncated ({error})"
            raise ResultsError(f"{path}: {why}") from None
        try:
            version = _check_format(path, file)
            with _damage_named(path):
                held = structure.check(file)
                checking.check_columns(held)
                layout = LAYOUTS[version](file)
                summary = _summary(file, version, layout)
                checking.check(layout, summary, held)
                summary["protocol"] = protocol(summary["spec"], summary["inputs"], summary["environment"])
                if file.id.get_filesize() <= _READ_WHOLLY:
                    read_all(file, held)
            return cls(path, file, layout, summary, held)
        except BaseException:
            file.close()
            raise

    @property
    def finished(self) -> dict[str, int]:
        """How much of the run is finished: epochs, steps, attempts, phases, and what probes found except at steps."""
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
            if not self._masks_checked:
                checking.check_masks(layout, self.summary)
                self._masks_checked = True
            return layout.masks(step)

    def weights(self, phase: str) -> dict[str, np.ndarray]:
        """Parameters and buffers of the ``dense``, ``pruned`` or ``finetuned`` network.

        Raises:
            ResultsError: If there are none; the message says which there are.
        """
        there = [name for name in PHASES if self.summary[name] is not None]
        if phase not in there:
            raise ResultsError(
                f"{self.path}: no {phase!r} weights; there are {', '.join(there) or 'none yet'}"
            )
        with self._reading() as layout:
            return layout.weights(phase)

    def examples(self, step: int) -> np.ndarray:
        """Indices into the training split that a step's statistics came from."""
        self._check_step(step)
        if step == 0:
            raise ResultsError(f"{self.path}: steps count from 1")
        with self._reading() as layout:
            return layout.examples(step)

    @property
    def saliency_steps(self) -> list[int]:
        """Steps whose saliencies are kept: see ``saliencies`` of the recorder ``hdf5``."""
        with self._reading() as layout:
            return layout.ranked()

    def saliencies(self, step: int) -> dict[str, np.ndarray]:
        """The saliencies a step chose by, with the λ term: float32 arrays, NaN where a weight was already pruned.

        Raises:
            ResultsError: If they are not kept; the message says of which steps they are.
        """
        with self._reading() as layout:
            kept = layout.ranked()
            if step not in kept:
                there = ", ".join(map(str, kept)) or "none"
                raise ResultsError(f"{self.path}: no saliencies of step {step}; those of {there} are kept")
            return layout.saliencies(step)

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
        moments = self.moments(name)
        if not moments:
            raise self._no_probe(name)
        if moment is None:
            moment = next(choice for choice in _FIRST_CHOICE if choice in moments)
        self._check_moment(name, moment)
        with self._reading() as layout:
            return layout.probe(name, moment)

    def attributes(self, name: str, moment: str) -> dict[str, Plain]:
        """Numbers and short texts that a probe stored beside its arrays at a moment.

        Raises:
            ResultsError: If the run has no such probe, or it did not measure then.
        """
        self._check_moment(name, moment)
        with self._reading() as layout:
            return layout.attributes(name, moment)

    def _check_moment(self, name: str, moment: str) -> None:
        moments = self.moments(name)
        if not moments:
            raise self._no_probe(name)
        if moment not in moments:
            raise ResultsError(
                f"{self.path}: probe {name!r} found nothing at {moment!r}, but at {', '.join(moments)}"
            )

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

    def headline(self, name: str) -> list[str]:
        """The most telling keys of a probe's summary: dots go inwards, ``*`` is every key. Empty if it names none.

        Raises:
            ResultsError: If there is no such probe.
        """
        with self._reading() as layout:
            if name not in self.summary["probes"]:
                raise self._no_probe(name)
            return layout.headline(name)

    def _no_probe(self, name: str) -> ResultsError:
        there = ", ".join(self.summary["probes"]) or "none"
        return ResultsError(f"{self.path}: no probe {name!r}; there are {there}")

    def whole(self, *, weights: bool = True) -> Whole:
        """Read everything in the file, and check masks against counts and weights against masks.

        Args:
            weights: ``False`` leaves out the last.

        Returns:
            How much was read, and whether all of it has checksums.

        Raises:
            ResultsError: Naming what is damaged.
        """
        with self._reading() as layout:
            return verify(self._file, layout, self.summary, self._held, weights)

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
        with _damage_named(self.path):
            yield self._layout


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
    return Results.open(path)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Say of whatever a file's content raises which file it is."""
    try:
        yield
    except ResultsError as error:
        raise ResultsError(f"{path}: damaged: {error}") from None
    except Exception as error:  # h5py raises many kinds on damaged bytes
        pass_interruption(error)
        raise ResultsError(f"{path}: damaged: {type(error).__name__}: {error}") from None


def _check_format(path: Path, file: h5py.File) -> int:
    """The format's version, if this prunekit reads it."""
    with _damage_named(path):
        stated = {name: plain(file.attrs[name]) for name in _ATTRIBUTES if name in file.attrs}
    if stated.get("format") != FORMAT:
        raise ResultsError(f"{path}: HDF5, but not a prunekit results file (no attribute format={FORMAT!r})")
    version, status, writer = (stated.get(name) for name in _ATTRIBUTES[1:])
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ResultsError(
            f"{path}: written in format {version} by prunekit {writer or '?'}; this prunekit reads up to "
            f"{FORMAT_VERSION}. Install prunekit {writer} or newer."
        )
    if not isinstance(version, int) or version not in LAYOUTS or status not in STATUSES:
        raise ResultsError(f"{path}: damaged: unknown status {status!r} or format {version!r}")
    if not isinstance(writer, str):
        raise ResultsError(f"{path}: damaged: does not say which prunekit wrote it")
    return version


def _summary(file: h5py.File, version: int, layout: Layout) -> dict[str, Plain]:
    """The summary in its order; what older versions do not have is there and says so."""
    stored = layout.summary()
    order = ("spec", "origins", "environment", "prunable", "dense", "steps", "pruned", "finetuned", "probes")
    return {
        "format": FORMAT,
        "format_version": version,
        "prunekit_version": plain(file.attrs["prunekit_version"]),
        "status": plain(file.attrs["status"]),
        **{key: stored[key] for key in order},
        "protocol": {},
        "spec_hash": stored.get("spec_hash"),
        "inputs": stored.get("inputs", {}),
        "warnings": stored.get("warnings", []),
        "resumptions": stored.get("resumptions", []),
        "attempts": stored.get("attempts", []),
        "stopped": stored.get("stopped"),
    }
