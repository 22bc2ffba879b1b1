"""What observers see: plain data, never the engine's own tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from prunekit.components import ProbeRecord

Metrics = dict[str, float | None]
"""``{train,valid,test}_loss`` and, for classification, ``_error``; ``None`` where not measured."""


@dataclass(frozen=True)
class StepRecord(Mapping[str, Any]):
    """A row of the table of steps; fields can be read as attributes or by key.

    Attributes:
        step: From 1.
        target_sparsity: The level that the scheduler asked for.
        sparsity: Pruned fraction of the prunable weights after the step.
        pruned: Pruned weights after the step.
        remaining: Prunable weights that are kept.
        predicted_delta_loss: The criterion's own model of the change, or ``None`` if it has none.
        delta_loss: Measured: loss after minus loss before, on the examples of the step's statistics.
        train_loss: Loss of the training split after the step, and so on for the other metrics;
            ``None`` where not measured.
        layers: Parameter to its sparsity.
        seconds: Wall time of the step, measuring included.
    """

    step: int
    target_sparsity: float
    sparsity: float
    pruned: int
    remaining: int
    predicted_delta_loss: float | None
    delta_loss: float
    layers: dict[str, float]
    train_loss: float | None = None
    valid_loss: float | None = None
    test_loss: float | None = None
    train_error: float | None = None
    valid_error: float | None = None
    test_error: float | None = None
    seconds: float = 0.0

    def __getitem__(self, key: str) -> Any:
        if key not in self._keys():
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())

    @classmethod
    def _keys(cls) -> list[str]:
        return [f.name for f in fields(cls)]


@dataclass(frozen=True)
class AttemptRecord:
    """What a scheduler that can take steps back has tried.

    Attributes:
        step: The step that it was, or would have been.
        target_sparsity: The level that the scheduler asked for.
        lam: Locality weight λ, or ``None`` where it was not the scheduler's to choose.
        predicted_delta_loss: The criterion's own model of the change, or ``None`` if it has none.
        delta_loss: Measured, as for a step.
        accepted: Whether it was kept.
        measured: What else the scheduler wanted to know, by name.
        seconds: Wall time.
    """

    step: int
    target_sparsity: float
    lam: float | None
    predicted_delta_loss: float | None
    delta_loss: float
    accepted: bool
    measured: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class RunView:
    """A run as recorders and observing hooks see it.

    Arrays are numpy copies on the CPU (bfloat16 as float32); changing them changes nothing.

    Attributes:
        out: The results file.
        spec: The resolved spec, JSON data.
        origins: Dotted path to ``default``, ``file`` or ``flag``.
        spec_text: The spec as the user wrote it.
        environment: Versions, device, seed, threads.
        shapes: Prunable parameter to its shape, in ``named_parameters()`` order.
        metric_names: The metrics that this task has.
        status: ``running``, ``complete``, ``failed`` or ``interrupted``.
        phase: What is going on: ``train``, ``prune``, ``finetune``, ``probes``, ``done``.
        metrics: ``dense``, ``pruned``, ``finetuned`` to their metrics, as far as measured.
        steps: The table so far.
        history: ``dense`` and ``finetuned`` to a row per training epoch.
        masks: Masks after the last step.
        examples: Indices into the training split that the last step's statistics came from.
        weights: Phase to its parameters and buffers, as far as they exist.
        probes: Probe to what it found.
        attempts: What a scheduler that can take steps back has tried; empty for others.
        total_steps: How many steps there will be, at most, or ``None`` where the scheduler decides as it goes.
        spec_hash: Of the resolved spec; empty if there is none.
        inputs: File to digest, of what the run reads.
        warnings: What the user was warned of.
        resumptions: When the run went on after an interruption.
    """

    out: Path
    spec: dict[str, Any]
    origins: dict[str, str]
    spec_text: str
    environment: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    metric_names: tuple[str, ...]
    status: str = "running"
    phase: str = "train"
    metrics: dict[str, Metrics] = field(default_factory=dict)
    steps: list[StepRecord] = field(default_factory=list)
    history: dict[str, list[dict[str, float | None]]] = field(default_factory=dict)
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    examples: np.ndarray | None = None
    weights: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    probes: dict[str, ProbeRecord] = field(default_factory=dict)
    attempts: list[AttemptRecord] = field(default_factory=list)
    total_steps: int | None = None
    spec_hash: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    resumptions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def prunable(self) -> int:
        """D, the number of prunable weights."""
        total = 0
        for shape in self.shapes.values():
            size = 1
            for n in shape:
                size *= n
            total += size
        return total


class Listener:
    """Follows a run's progress, for display; every method is optional."""

    def phase(self, name: str, total: int, done: int) -> None:
        """A phase begins, ``done`` of its ``total`` epochs, steps or probes already done."""

    def message(self, text: str) -> None:
        """Something worth a line."""

    def epoch(self, phase: str, row: Mapping[str, float | None]) -> None:
        """An epoch is done."""

    def step(self, record: StepRecord) -> None:
        """A pruning step is done."""

    def probe(self, name: str) -> None:
        """A probe is done."""
