"""What observers see: plain data, never the engine's own tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

Plain: TypeAlias = Any
"""JSON data: mappings, lists, texts, numbers, booleans, None."""

Row: TypeAlias = Mapping[str, Plain]
"""A mapping of names to plain data."""

Metrics = dict[str, float | None]
"""``{train,valid,test}_loss`` and, for classification, ``_error``; ``None`` where not measured."""


@dataclass(frozen=True)
class Series:
    """One array that a probe measured, with what its axes mean."""

    values: Any
    axes: tuple[str, ...]
    units: str = ""


@dataclass(frozen=True)
class ProbeRecord:
    """What a probe found at one moment: arrays for the results file and a summary for ``inspect --json``.

    Attributes:
        groups: A group (say, ``dense_to_pruned``) to its named arrays.
        summary: JSON data.
        kind_version: Raised by the probe's author when the meaning of the arrays changes.
        attributes: Numbers and short texts that the file keeps beside the arrays.
        moment: Set by the engine: ``dense``, ``step``, ``pruned``, ``finetuned`` or ``end``.
        step: Set by the engine: the step's number, from 1, at a step.
        name: Set by the engine: the probe's, which a label may hide.
        headline: Set by the engine: the most telling keys of the summary.
    """

    groups: Mapping[str, Mapping[str, Series]]
    summary: Mapping[str, Plain]
    kind_version: int = 1
    attributes: Mapping[str, Plain] = field(default_factory=dict)
    moment: str = "end"
    step: int | None = None
    name: str = ""
    headline: Sequence[str] = ()


@dataclass(frozen=True)
class StepRecord(Mapping[str, Plain]):
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
        metrics: Further metrics by split and label, such as ``valid_perplexity``; by key they stand beside the others.
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
    metrics: Metrics = field(default_factory=dict)

    @classmethod
    def of(cls, row: Row) -> StepRecord:
        """From a mapping in which further metrics stand beside the others."""
        own = {f.name for f in fields(cls)}
        further = {key: value for key, value in row.items() if key not in own}
        known = {key: value for key, value in row.items() if key in own}
        return cls(**{**known, "metrics": {**known.get("metrics", {}), **further}})

    def __getitem__(self, key: str) -> Any:
        if key in self.metrics:
            return self.metrics[key]
        if key == "metrics" or key not in self.__dataclass_fields__:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())

    def _keys(self) -> list[str]:
        return [*(f.name for f in fields(self) if f.name != "metrics"), *self.metrics]


@dataclass(frozen=True)
class Target:
    """What an attempt aims at.

    Attributes:
        sparsity: Fraction of the prunable weights that are pruned afterwards, in [0, 1), not below the current one.
        lam: Locality weight λ of the attempt; ``None`` for the one that the user set.
        damping: Instead of λ: replaces λ and, for a criterion that damps, its own damping, the multiple of the
            identity that is added to the curvature; > 0. ``None`` leaves both as they are.
    """

    sparsity: float
    lam: float | None = None
    damping: float | None = None


@dataclass(frozen=True)
class Stop:
    """Why pruning has stopped.

    Attributes:
        why: In words.
        short: Whether that is short of the target, so that the run has failed.
    """

    why: str
    short: bool = False


@dataclass(frozen=True)
class Attempt:
    """A step that was proposed, applied and measured, whether it stayed or not.

    Attributes:
        step: Which step it attempts, from 1.
        target: What the scheduler aimed at.
        sparsity: Pruned fraction of the prunable weights after it.
        pruned: Pruned weights after it.
        lam: Locality weight λ that was used; 0 where the target sets the damping of a criterion that damps.
        predicted_delta_loss: The criterion's own model of the change, or ``None`` if it has none.
        delta_loss: Measured on the step's examples: loss after it minus loss before; may not be finite.
        measured: What the scheduler's probes found for the proposal: probe to name to number.
        accepted: Whether it stayed; False while the scheduler is being asked.
        seconds: Wall time, statistics and measuring included.
    """

    step: int
    target: Target
    sparsity: float
    pruned: int
    lam: float
    predicted_delta_loss: float | None
    delta_loss: float
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    accepted: bool = False
    seconds: float = 0.0

    @property
    def target_sparsity(self) -> float:
        """Of the target."""
        return self.target.sparsity


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
        masks: Masks after the last step, read-only.
        examples: Indices into the training split that the last step's statistics came from.
        saliencies: The saliencies that the last step's weights were chosen by, with the λ term: -inf where nothing was
            left to choose. ``None`` unless a recorder wants them, or if the criterion chooses without.
        weights: Phase to its parameters and buffers, as far as they exist.
        probes: Label of a probe and what it found, a pair for each moment; for steps, only the latest ones.
        attempts: The attempts so far, with an adaptive scheduler; else empty.
        total_steps: How many steps there will be; ``None`` if the scheduler adapts.
        spec_hash: Hash of the bound spec.
        inputs: File to digest, of what the run reads.
        warnings: Warnings that the user was given.
        resumptions: When the run was resumed after an interruption.
        stopped: Why pruning has stopped, in words, where its scheduler says it.
    """

    out: Path
    spec: dict[str, Plain]
    origins: dict[str, str]
    spec_text: str
    environment: dict[str, Plain]
    shapes: dict[str, tuple[int, ...]]
    metric_names: tuple[str, ...]
    status: str = "running"
    phase: str = "train"
    metrics: dict[str, Metrics] = field(default_factory=dict)
    steps: list[StepRecord] = field(default_factory=list)
    history: dict[str, list[dict[str, float | None]]] = field(default_factory=dict)
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    examples: np.ndarray | None = None
    saliencies: Mapping[str, np.ndarray] | None = None
    weights: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    probes: list[tuple[str, ProbeRecord]] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    total_steps: int | None = None
    spec_hash: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    resumptions: list[dict[str, Plain]] = field(default_factory=list)
    stopped: str | None = None

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
