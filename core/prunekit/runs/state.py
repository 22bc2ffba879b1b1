"""What resuming needs, beside the results file while the run is unfinished.

Written to a temporary file and renamed, so that a kill at any moment leaves the old or the new state,
never half of one. The state is written before the recorders hear of an event and holds all that they would
have written, so what is in the state is finished and what is not never happened. Steps that change nothing
but masks are the exception: the results file holds all there is to them, and they are read from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor
from torch.utils._pytree import tree_leaves

from prunekit.component import scalar
from prunekit.errors import ResultsError, RunError, pass_interruption
from prunekit.foreign import damage_of_archive, unreadable
from prunekit.observing.journal import Note
from prunekit.records import Attempt, Metrics, Plain, ProbeRecord, Row, Series, StepRecord
from prunekit.results import open_results
from prunekit.results.claim import naming
from prunekit.results.ours import STATE as FORMAT
from prunekit.results.replacing import replacing
from prunekit.results.space import reserve

VERSION = 2
SUFFIX = ".state"
_ROOM = 1 << 16  # bytes set aside besides the tensors


def state_path(out: Path) -> Path:
    """Where the state of an unfinished run lies."""
    return out.with_name(out.name + SUFFIX)


def blocks_path(out: Path) -> Path:
    """The folder of the blocks that an unfinished step has finished."""
    return out.with_name(f"{out.name}{SUFFIX}.blocks")


@dataclass
class Noted:
    """The pieces of a probe that is not finished.

    Attributes:
        label: The probe's.
        moment: Where it was asked.
        notes: What it has measured there so far.
    """

    label: str
    moment: str
    notes: list[Note]


@dataclass
class State:
    """A run between two boundaries.

    Attributes:
        spec: The bound spec that the run follows.
        spec_hash: Of its values that determine the results.
        inputs: The files that the run reads to the digests of their contents.
        phase: ``train``, ``prune``, ``finetune``, ``probes``.
        done: Epochs, steps or probes of this phase that are finished.
        current: The model's parameters and buffers; empty where they are the dense ones under the masks.
        masks: Masks after the last step.
        optimizer: Its state, in the middle of a training phase.
        best: The best epoch so far, in the middle of a training phase: value, epoch, weights.
        weights: Parameters and buffers of finished phases.
        recorded: Phases whose weights the results file holds, so that they need not be written here at
            every step; :meth:`catch_up` takes them from there.
        metrics: Of finished phases.
        steps: The table so far.
        attempts: Of a scheduler that adapts, all so far.
        history: Training epochs so far.
        examples: Training indices of the last step.
        saliency: What its weights were chosen by, over all prunable weights, if a recorder wants it.
        journal: In the middle of a probe, the pieces that are done.
        probes: What probes found, label and record; of those at steps, at the last step only.
        warnings: What the user was warned of.
        stopped: Why pruning has stopped, where its scheduler says it.
        environment: The circumstances in which the run began.
        resumptions: In which others it went on.
    """

    __pydantic_config__: ClassVar = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    spec: dict[str, Plain]
    spec_hash: str
    inputs: dict[str, str]
    phase: Annotated[str, Field(pattern="^(train|prune|finetune|probes)$")] = "train"
    done: Annotated[int, Field(ge=0)] = 0
    current: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Plain] | None = None
    best: dict[str, Plain] | None = None
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    metrics: dict[str, Metrics] = field(default_factory=dict)
    steps: list[StepRecord] = field(default_factory=list)
    history: dict[str, list[dict[str, float | None]]] = field(default_factory=dict)
    examples: Tensor | None = None
    saliency: Tensor | None = None
    journal: Noted | None = None
    attempts: list[Attempt] = field(default_factory=list)
    probes: list[tuple[str, ProbeRecord]] = field(default_factory=list)
    recorded: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stopped: str | None = None
    environment: dict[str, Plain] = field(default_factory=dict)
    resumptions: list[dict[str, Plain]] = field(default_factory=list)

    @property
    def finished(self) -> dict[str, int]:
        """How much is finished, in the words of :attr:`prunekit.Results.finished`."""
        return {
            "dense epochs": len(self.history.get("dense", ())),
            "finetuned epochs": len(self.history.get("finetuned", ())),
            "steps": len(self.steps),
            "phases": len(self.metrics),
            "attempts": len(self.attempts),
            "probes": sum(record.step is None for _, record in self.probes),
        }

    def save(self, path: Path) -> None:
        """Write atomically.

        Raises:
            RunError: If it cannot be written, or another process owns the output now; the old state is then still
                whole.
        """
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["steps"] = [asdict(step) for step in self.steps]
        data["attempts"] = [asdict(attempt) for attempt in self.attempts]
        data["probes"] = [(label, _plain_record(record)) for label, record in self.probes]
        if self.journal is not None:
            data["journal"] = {**vars(self.journal), "notes": [vars(note) for note in self.journal.notes]}
        data["weights"] = {name: w for name, w in self.weights.items() if name not in self.recorded}
        named = naming(path.with_name(path.name.removesuffix(SUFFIX)))
        try:
            with replacing(path, named) as temporary, temporary.open("wb") as file:
                reserve(file, _ROOM + sum(t.nbytes for t in tree_leaves(data) if isinstance(t, Tensor)))
                torch.save({"format": FORMAT, "version": VERSION, **data}, file)
                file.truncate()
        except (OSError, RuntimeError, MemoryError) as error:
            if isinstance(error, RunError):
                raise
            raise RunError(f"{path}: the state cannot be written: {str(error) or 'out of memory'}") from error

    @classmethod
    def load(cls, path: Path) -> State:
        """Read; the file cannot execute code.

        Raises:
            ResultsError: If it is missing, damaged or of another version.
        """
        if why := unreadable(path):
            missing = "the state file needed to resume is missing" if why == "no such file" else why
            raise ResultsError(f"{path}: {missing}; use --overwrite to start again")
        try:
            wrong = damage_of_archive(path)  # torch compares no checksums
            data = {} if wrong else torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises several kinds for damaged files
            pass_interruption(error)
            wrong = type(error).__name__
        if wrong:
            raise ResultsError(f"{path}: damaged ({wrong}); use --overwrite to start again")
        if (
            not isinstance(data, dict)
            or data.pop("format", None) != FORMAT
            or data.pop("version", None) != VERSION
        ):
            raise ResultsError(
                f"{path}: not a state that this prunekit wrote; use --overwrite to start again"
            )
        try:
            data["probes"] = [(label, _record(plain)) for label, plain in data["probes"]]
            return TypeAdapter(cls).validate_python(data)  # every field there, and of its type
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            place = error.errors()[0]["loc"] if isinstance(error, ValidationError) else error
            raise ResultsError(
                f"{path}: not the content of a state ({place}); use --overwrite to start again"
            ) from None

    def check_fits(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Refuse a state whose tensors are not those of the model.

        Args:
            path: Where the state lies.
            tensors: The model's parameters and buffers.

        Raises:
            ResultsError: Naming the first that does not fit.
        """
        shapes = {name: t.shape for name, t in tensors.items()}
        whole = [weights for weights in (self.current, *self.weights.values()) if weights]
        for weights in whole:
            for name in {**shapes, **weights}:
                if name not in weights or weights[name].shape != shapes.get(name):
                    raise ResultsError(
                        f"{path}: its {name} does not fit the model; use --overwrite to start again"
                    )
        for name, mask in self.masks.items():
            if mask.shape != shapes.get(name) or mask.dtype != torch.bool:
                raise ResultsError(
                    f"{path}: its mask of {name} does not fit the model; use --overwrite to start again"
                )

    def catch_up(self, path: Path) -> None:
        """Take from the results file what is not kept here: weights of finished phases, steps that only mask.

        Raises:
            ResultsError: If the file is gone.
        """
        missing = [name for name in self.recorded if name not in self.weights]
        if not missing and not (self.phase == "prune" and path.exists()):
            return
        with open_results(path) as results:
            for name in missing:
                arrays = results.weights(name)
                self.weights[name] = {key: torch.from_numpy(a) for key, a in arrays.items()}
            self.weights = {name: self.weights[name] for name in self.metrics}  # in the order of the run
            rows = results.summary["steps"]
            if self.phase == "prune" and len(rows) > self.done:
                self.steps = [StepRecord.of(row) for row in rows]
                self.done = len(rows)
                self.masks = {k: torch.from_numpy(m) for k, m in results.masks(self.done).items()}
                self.examples = torch.from_numpy(results.examples(self.done))
                self.current = {}
                self.warnings = results.summary["warnings"]


def plain(record: ProbeRecord) -> ProbeRecord:
    """A probe's findings as numpy arrays and plain data, whatever they were."""
    return _record(_plain_record(record))


def _plain_record(record: ProbeRecord) -> dict[str, Plain]:
    """A probe's findings as tensors and plain data, which the state can hold."""
    data = asdict(record)
    for key in ("summary", "attributes"):  # numpy's numbers are no plain data
        data[key] = json.loads(json.dumps(data[key], default=scalar))
    data["groups"] = {
        group: {
            key: {
                "values": torch.from_numpy(np.array(series.values)),
                "axes": list(series.axes),
                "units": series.units,
            }
            for key, series in arrays.items()
        }
        for group, arrays in record.groups.items()
    }
    return data


def _record(data: Row) -> ProbeRecord:
    """Undo the state's form of a probe's findings."""
    groups = {
        group: {key: Series(s["values"].numpy(), tuple(s["axes"]), s["units"]) for key, s in arrays.items()}
        for group, arrays in data["groups"].items()
    }
    return ProbeRecord(**{**data, "groups": groups})
