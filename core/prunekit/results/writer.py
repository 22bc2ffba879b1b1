"""Write a results file so that a kill at any moment leaves the last finished state of it.

Every change is made to a copy, which then takes the file's name in one atomic rename. Readers never meet
a file in the middle of a change and never wait for a lock. Copying costs memory bandwidth only: the bytes
go through the page cache, and nothing waits for the disk more than once a second. What a step overwrites
is left out of the copy, and what it adds is small, so a step costs as much at the end of a run as at its start.
What is added has to be the next: a file that another process has continued is refused.

The HDF5 library does not survive a disk that fills up while it writes. So space is set aside before it
starts, and a new file is made in memory.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from prunekit.errors import PrunekitError, ResultsError, RunError
from prunekit.results import history, probes, rankings, storing
from prunekit.results.claim import naming
from prunekit.results.format import (
    ATTEMPT_COLUMNS,
    FLOAT_COLUMNS,
    FORMAT,
    FORMAT_VERSION,
    INTEGER_COLUMNS,
    METRIC_COLUMNS,
    STATUSES,
    member,
    units,
)
from prunekit.results.replacing import replacing
from prunekit.results.space import Extent, copy, reserve

if TYPE_CHECKING:
    from prunekit.records import ProbeRecord, Row


_ROOM = 1 << 20  # bytes set aside for a change besides its arrays
_ROOM_PER_ARRAY = 1 << 13  # headers and chunk indices
_KEPT = 1 << 24  # bytes of a mask history that stay in memory between steps


@dataclass
class Written:
    """What a file holds already, for catching up."""

    steps: int = 0
    attempts: int = 0
    epochs: dict[str, int] = field(default_factory=dict)
    phases: set[str] = field(default_factory=set)
    probes: set[tuple[str, str, int | None]] = field(default_factory=set)
    """Label, moment, and the step where the moment is ``step``."""


@dataclass
class _Known:
    """What the file holds of its steps: read before a step is added, and kept for the next where it is small.

    Attributes:
        places: Of the prunable tensors.
        gone: The mask history.
        holes: Where it lies in the file.
        compressed: Whether it cannot be overwritten there.
        steps: How many there are.
        indices: How many example indices are stored.
        last: Where those of the last step begin, and they themselves.
    """

    places: list[history.Place]
    gone: np.ndarray
    holes: list[Extent]
    compressed: bool
    steps: int
    indices: int
    last: tuple[int, np.ndarray] | None


class ResultsWriter:
    """Edits one results file.

    Args:
        path: The file; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._notes: dict[str, str] = {}
        self._noted: dict[str, str] = {}
        self._known: _Known | None = None

    def create(
        self,
        version: str,
        spec: Row,
        origins: Row,
        text: str,
        environment: Row,
        shapes: Mapping[str, Sequence[int]],
        metric_columns: Sequence[str] = METRIC_COLUMNS,
        *,
        total_steps: int | None = None,
        spec_hash: str = "",
        inputs: Row | None = None,
    ) -> None:
        """Start the file, replacing one that is there.

        Args:
            version: Of the prunekit that writes.
            spec: Resolved.
            origins: Dotted path of every value to where it came from.
            text: The spec as the user wrote it.
            environment: Versions, device, threads.
            shapes: Prunable tensor to its shape; empty for a run that does not prune.
            metric_columns: The metrics that the task has.
            total_steps: How many steps there will be, at most, where that is known: the mask history then
                need not be written anew for a larger type.
            spec_hash: Of the resolved spec; empty if there is none.
            inputs: File to digest, of what the run reads.
        """
        self._known = None
        with self._created() as file:
            root = {"format": FORMAT, "format_version": FORMAT_VERSION, "prunekit_version": version}
            file.attrs.update({name: storing.attribute(value) for name, value in root.items()})
            file.attrs["status"] = _status("running")
            storing.store_text(file, "spec/resolved", storing.json_text(spec, indent=1))
            storing.store_text(file, "spec/origins", storing.json_text(origins, indent=1))
            storing.store_text(file, "spec/text", text)
            if spec_hash:
                storing.store_text(file, "spec/hash", spec_hash)
            if inputs:
                storing.store_text(file, "inputs", storing.json_text(inputs, indent=1))
            storing.store_text(file, "environment", storing.json_text(environment, indent=1))
            places = history.places(shapes)
            tensors = [{"name": p.name, "shape": p.shape, "start": p.start, "stop": p.stop} for p in places]
            storing.store_text(file, "prunable/tensors", storing.json_text(tensors))
            count = places[-1].stop if places else 0
            file["prunable"].attrs["count"] = storing.attribute(count)
            if places:
                _create_steps(file, len(places), metric_columns)
                history.create(file, count, history.smallest(total_steps or 1))

    def note(self, name: str, value: Any) -> None:
        """Keep a JSON document, such as ``warnings``, as it is now; it is written with the next change.

        An empty one that was never anything else stays absent.
        """
        text = storing.json_text(value, indent=1)
        if (value or name in self._noted) and text != self._noted.get(name):
            self._notes[name] = text

    def add_step(
        self,
        row: Row,
        masks: Mapping[str, np.ndarray],
        examples: np.ndarray,
        same_examples: bool = False,
        attempts: Sequence[Row] = (),
        found: Sequence[tuple[str, ProbeRecord]] = (),
        saliencies: Mapping[str, np.ndarray] | None = None,
        saliency_dtype: str = "float32",
    ) -> None:
        """Add a pruning step with all that belongs to it, in one change.

        Args:
            row: Its columns, and ``layers``.
            masks: Bool arrays, True = kept.
            examples: Indices into the training split.
            same_examples: The sample is known to be that of the step before. One that turns out to be is
                not stored again either.
            attempts: The step's own attempt, and others that are not in the file yet; see :meth:`add_attempt`.
            found: Labels of probes and what they found at the step.
            saliencies: What its weights were chosen by, by tensor; what is infinite had gone before.
            saliency_dtype: How they are stored: ``float32``, or ``float16``.

        Raises:
            RunError: If the file cannot be written, does not end at the step before, or a mask revives a weight.
        """
        known = self._known or self._read_known()
        self._known = None  # until it is true again
        step = known.steps + 1
        self._check_next("step", row["step"], known.steps)
        if step > np.iinfo(known.gone.dtype).max or known.compressed:
            dtype = np.promote_types(known.gone.dtype, history.smallest(step))
            self._rebuild(known.gone.astype(dtype), compress=False)
            known = self._read_known()
        history.advance(known.gone, known.places, masks, step)
        same = known.last is not None and (same_examples or np.array_equal(known.last[1], examples))
        # Indices may have to be stored anew, in a larger type.
        room = (0 if known.holes else 2 * known.gone.nbytes) + 16 * len(known.places)
        room += 0 if saliencies is None else 8 * known.gone.size
        room += 16 * (known.indices + examples.size) + sum(_room_of(record) for _, record in found)
        with self._edit(room, known.holes) as file:
            self._check_next("step", step, _length(file, "steps/step"))
            history.write(file, known.gone)
            for attempt in attempts:
                _add_attempt(file, attempt)
            for label, record in found:
                probes.write(file, label, record)
            steps = file["steps"]
            for column in list(steps):
                if column == "layers":
                    storing.append(steps, column, list(row[column].values()))
                    continue
                value = row.get(column)
                storing.append_number(steps, column, np.nan if value is None else value)
            _add_examples(file, examples, known.last[0] if known.last and same else None)
            if saliencies is not None:
                rankings.append(file, step, saliencies, saliency_dtype)
        if step > 1 and known.gone.nbytes <= _KEPT:  # the first step has made the room of the history
            known.steps = step
            if not same:
                known.last = known.indices, np.array(examples)
                known.indices += examples.size
            self._known = known

    def _read_known(self) -> _Known:
        with self._opened() as file:
            last, indices = None, _length(file, "examples/indices")
            if _length(file, "examples/start"):
                group = file["examples"]
                start, count = int(group["start"][-1]), int(group["count"][-1])
                last = start, group["indices"][start : start + count]
            return _Known(
                _places(file),
                storing.read(file, history.GONE),
                history.extents(file),
                file[history.GONE].compression is not None,
                _length(file, "steps/step"),
                indices,
                last,
            )

    def add_attempt(self, row: Row) -> None:
        """Add what a scheduler that can take steps back has tried.

        Args:
            row: ``step``, ``target_sparsity``, ``lambda``, ``predicted_delta_loss``, ``delta_loss``, ``accepted``,
                ``seconds``, maybe ``damping``, and ``measured``, a mapping of numbers.
        """
        with self._edit() as file:
            _add_attempt(file, row)

    def add_epoch(self, phase: str, row: Row) -> None:
        """Add a training epoch's row to the history of a phase.

        Raises:
            RunError: If the file cannot be written, or does not end at the epoch before.
        """
        with self._edit() as file:
            self._check_next(f"{phase} epoch", row["epoch"], _length(file, f"training/{phase}/epoch"))
            group = file.require_group(f"training/{phase}")
            for column, value in row.items():
                if not storing.has(group, column):
                    storing.growing(group, column, (), np.float64, ("epoch",), units(column))
                storing.append(group, column, np.nan if value is None else value)

    def add_phase(self, phase: str, metrics: Row, weights: Mapping[str, np.ndarray]) -> None:
        """Add the metrics and weights of a finished phase.

        Raises:
            RunError: If the file cannot be written, or has the phase already.
        """
        with self._edit(_size(weights.values())) as file:
            if storing.has(file, f"metrics/{phase}"):
                raise RunError(
                    f"{self.path}: holds the {phase.replace('finetuned', 'fine-tuned')} network already; "
                    "is another process writing it?"
                )
            group = file.create_group(f"metrics/{phase}")
            for name, value in metrics.items():
                storing.store(group, name, np.nan if value is None else float(value))
                group[name].attrs["units"] = storing.attribute(units(name))
            if not storing.has(file, "weights/tensors"):
                tensors = [{"name": name, "shape": array.shape} for name, array in weights.items()]
                storing.store_text(file, "weights/tensors", storing.json_text(tensors))
            group = file.create_group(f"weights/{phase}")
            for name, array in weights.items():
                storing.store(group, member(name), array)

    def add_probe(self, label: str, record: ProbeRecord) -> None:
        """Add what a probe found at a moment.

        Args:
            label: The probe's key in the results.
            record: What it found, when, and by which probe.

        Raises:
            RunError: If the file cannot be written, or at a step the arrays are not those of earlier steps.
        """
        with self._edit(_room_of(record)) as file:
            probes.write(file, label, record)

    def finish(self, status: str, environment: Row) -> None:
        """Set the status and the environment, compress the masks of a complete run, and wait for the disk."""
        compress = False
        if status == "complete":
            with self._opened() as file:
                compress = storing.has(file, history.GONE) and file[history.GONE].compression is None
        if compress:
            with self._opened() as file:
                gone = storing.read(file, history.GONE)
            change = self._rebuilt(gone, compress=True, sync=True)
        else:
            change = self._edit(sync=True)
        with change as file:
            file.attrs.modify("status", _status(status))
            storing.replace_text(file, "environment", storing.json_text(environment, indent=1))

    def set_status(self, status: str) -> None:
        """Set the status alone, as when a run is resumed."""
        with self._edit() as file:
            file.attrs.modify("status", _status(status))

    def done(self) -> Written:
        """What the file holds.

        Raises:
            ResultsError: If an earlier version of the format has written it; that one cannot be added to.
        """
        with self._opened() as file:
            check_version(self.path, int(file.attrs["format_version"]))
            phases = storing.members(file, "training")
            written = Written(
                steps=_length(file, "steps/step"),
                attempts=_length(file, "attempts/step"),
                epochs={phase: _length(file, f"training/{phase}/epoch") for phase in phases},
                phases=set(storing.members(file, "metrics")),
            )
            for label in storing.members(file, "probes"):
                probe = file["probes"][label]
                once = set(probes.moments(probe)) - {probes.STEP}
                written.probes |= {(label, moment, None) for moment in once}
                written.probes |= {(label, probes.STEP, step) for step in probes.steps(probe)}
            for name in ("warnings", "resumptions", "stopped"):
                if storing.has(file, name):
                    self._noted[name] = storing.read_text(file, name)
            return written

    # -- making a change -------------------------------------------------------------------------------

    @contextmanager
    def _opened(self) -> Iterator[h5py.File]:
        with storing.reading(self.path) as file:
            yield file

    @contextmanager
    def _created(self) -> Iterator[h5py.File]:
        with self._replacing() as temporary, _made(temporary) as file:
            yield file
            self._write_notes(file)
        self._notes.clear()

    @contextmanager
    def _edit(self, room: int = 0, holes: Iterable[Extent] = (), sync: bool = False) -> Iterator[h5py.File]:
        """A copy to change. Its holes MUST be overwritten wholly."""
        with self._replacing(sync) as temporary:
            copy(self.path, temporary, _ROOM + room + self._room_for_notes, holes)
            with _writing(temporary) as file:
                yield file
                self._write_notes(file)
        self._notes.clear()

    def _rebuild(self, gone: np.ndarray, compress: bool) -> None:
        with self._rebuilt(gone, compress):
            pass

    @contextmanager
    def _rebuilt(self, gone: np.ndarray, compress: bool, sync: bool = False) -> Iterator[h5py.File]:
        """A copy made object by object, to change: nothing in it is left over from what was replaced."""
        with self._replacing(sync) as temporary:
            with _made(temporary):
                pass
            with temporary.open("rb+") as raw:
                size = self.path.stat().st_size
                reserve(raw, size + size // 16 + gone.nbytes + _ROOM + self._room_for_notes)
            with self._opened() as old, _writing(temporary) as file:
                _copy_objects(old, file)
                history.create(file, gone.size, gone.dtype, gone if compress else None)
                if not compress:
                    history.write(file, gone)
                yield file
                self._write_notes(file)
        self._notes.clear()

    @contextmanager
    def _replacing(self, sync: bool = False) -> Iterator[Path]:
        """A file beside the results file, which takes its place."""
        try:
            with replacing(self.path, naming(self.path, sync)) as temporary:
                yield temporary
        except PrunekitError:
            raise
        except (OSError, RuntimeError, MemoryError) as error:  # h5py's are of all three kinds
            raise RunError(
                f"{self.path}: cannot be written ({str(error) or 'out of memory'}); what was finished before is kept in it"
            ) from error

    def _check_next(self, what: str, number: int, last: int) -> None:
        """Refuse to leave a gap, or to add anything twice.

        Raises:
            RunError: Saying where the file ends.
        """
        if number != last + 1:
            raise RunError(
                f"{self.path}: {what} {number} cannot be added, since the file ends at {what} {last}; "
                "is another process writing it?"
            )

    @property
    def _room_for_notes(self) -> int:
        return sum(4 * len(text) + _ROOM_PER_ARRAY for text in self._notes.values())

    def _write_notes(self, file: h5py.File) -> None:
        for name, text in self._notes.items():
            storing.replace_text(file, name, text)
        self._noted |= self._notes


def check_version(path: Path, version: int) -> None:
    """Refuse to go on with a file of an earlier format.

    Raises:
        ResultsError: Saying what to do.
    """
    if version != FORMAT_VERSION:
        raise ResultsError(
            f"{path}: its run was started in format {version}, and this prunekit continues only format "
            f"{FORMAT_VERSION}. Finish it with the prunekit that started it (0.1 for format 1), or use "
            "--overwrite to start again."
        )


@contextmanager
def _made(path: Path) -> Iterator[h5py.File]:
    """A new file, made in memory and written once it is whole.

    By way of Python: the image that HDF5 1.14 gives of a file in its own memory has a wrong checksum.
    """
    content = io.BytesIO()
    with h5py.File(content, "w", libver=storing.LIBVER) as file:
        yield file
    path.write_bytes(content.getbuffer())


def _writing(path: Path) -> h5py.File:
    return h5py.File(path, "r+", locking=False, libver=storing.LIBVER)  # cuts off what it does not need


def _copy_objects(old: h5py.File, new: h5py.File) -> None:
    """Copy everything but the mask history, chunks as they are, checksums with them."""
    for name in old.attrs:  # by type too: a string's length is the room that it has
        new.attrs.create(name, old.attrs[name], dtype=old.attrs.get_id(name).dtype)
    masks, gone = history.GONE.split("/")
    for name in set(old) - {masks}:
        old.copy(name, new)
    for name in set(old[masks]) - {gone}:
        old.copy(old[masks][name], new.require_group(masks), name)


def _create_steps(file: h5py.File, layers: int, metric_columns: Sequence[str]) -> None:
    steps = file.create_group("steps")
    for column in (*INTEGER_COLUMNS, *FLOAT_COLUMNS, *metric_columns):
        dtype = np.int64 if column in INTEGER_COLUMNS else np.float64
        storing.growing(steps, column, (), dtype, ("step",), units(column))
    storing.growing(steps, "layers", (layers,), np.float64, ("step", "layer"), units("sparsity"))


def _add_attempt(file: h5py.File, row: Row) -> None:
    if not storing.has(file, "attempts"):
        group = file.create_group("attempts")
        for column, dtype in ATTEMPT_COLUMNS.items():
            storing.growing(group, column, (), dtype, ("attempt",), units(column))
        storing.store_text(group, "measured", "")
    group = file["attempts"]
    for column in ATTEMPT_COLUMNS:
        value = row.get(column) if column == "damping" else row[column]
        storing.append(group, column, np.nan if value is None else value)
    storing.append_text(group, "measured", storing.json_text(row["measured"]) + "\n")


def _room_of(record: ProbeRecord) -> int:
    """Bytes that a probe's findings take, twice over."""
    return 2 * _size(np.asarray(s.values) for group in record.groups.values() for s in group.values())


def _add_examples(file: h5py.File, examples: np.ndarray, known: int | None) -> None:
    """Note which examples a step has used, and store them unless they are known to begin somewhere already."""
    needed = np.min_scalar_type(int(examples.max()) if examples.size else 0)
    if not storing.has(file, "examples"):
        group = file.create_group("examples")
        _create_indices(group, needed, examples.size)
        for name in ("start", "count"):
            storing.growing(group, name, (), np.int64, ("step",), "examples")
    group = file["examples"]
    if known is None:
        indices = h5py.h5d.open(group.id, b"indices")
        known = int(indices.shape[0])
        if needed.itemsize > indices.dtype.itemsize:
            earlier = storing.read(group, "indices")
            del group["indices"]
            _create_indices(group, needed, examples.size)
            storing.append(group, "indices", earlier)
        storing.append(group, "indices", examples)
    storing.append_number(group, "start", known)
    storing.append_number(group, "count", examples.size)


def _create_indices(group: h5py.Group, dtype: np.dtype[Any], count: int) -> None:
    chunk = (min(max(count, 64), 1 << 14),)
    storing.create(group, "indices", (0,), dtype, grows=True, chunk=chunk)
    storing.describe(group["indices"].id, ("example",), "index")


def _places(file: h5py.File) -> list[history.Place]:
    tensors = storing.read_json(file, "prunable/tensors")
    return history.places({t["name"]: t["shape"] for t in tensors})


def _length(file: h5py.File, column: str) -> int:
    return int(h5py.h5d.open(file.id, column.encode()).shape[0]) if storing.has(file, column) else 0


def _status(status: str) -> np.ndarray:
    """Wide enough for every status, so that one takes the place of another."""
    return np.array(status.encode(), dtype=f"S{max(map(len, STATUSES))}")


def _size(arrays: Iterable[np.ndarray]) -> int:
    return sum(a.nbytes + _ROOM_PER_ARRAY for a in arrays)
