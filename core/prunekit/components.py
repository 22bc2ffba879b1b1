"""Base classes of everything that a plugin can supply.

A component is a class with a ``name`` and an ``Options`` model; the engine builds it from the spec.
This module imports no torch, so a plugin's options can be listed and a spec checked in an instant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from prunekit.errors import UnsupportedError
from prunekit.requests import Statistic

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from prunekit.budget import Layer
    from prunekit.data import DataInfo, Splits
    from prunekit.engine.events import RunView, StepRecord
    from prunekit.engine.landscape import Landscape
    from prunekit.estimation import ForwardPass, Problem

Tensors = Mapping[str, "Tensor"]
"""Parameter name to tensor."""


class Options(BaseModel):
    """Options of a component: a frozen pydantic model that refuses unknown keys.

    The engine takes ``name`` itself, and ``lambda`` for criteria and ``checkpoint`` for models.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


BaseOptions = Options  # inside the classes below, the name means their own options


class Component:
    """Something with a name and typed options."""

    name: ClassVar[str]
    kind: ClassVar[str]
    Options: ClassVar[type[BaseOptions]] = Options
    options: Any  # an instance of the class's own Options

    def __init__(self, **options: Any) -> None:
        # Strictness is for specs: in Python a str for a Path or a list for a tuple is no mistake.
        self.options = self.Options.model_validate(options, strict=False)

    @classmethod
    def from_options(cls, options: BaseOptions, base: Path | None = None) -> Self:
        """Build from validated options; relative paths among them are taken from ``base``."""
        component = cls.__new__(cls)
        if base is not None:
            paths = {k: base / v for k, v in options if isinstance(v, Path)}
            options = options.model_copy(update=paths)
        component.options = options
        return component


class Model(Component, ABC):
    """Builds a network. ``build`` runs under a seeded torch random state."""

    kind = "model"

    @abstractmethod
    def build(self, data: DataInfo) -> nn.Module:
        """Return a freshly initialised network for data of this shape, on CPU in float32."""


class Dataset(Component, ABC):
    """Loads a data set into tensors."""

    kind = "dataset"

    @abstractmethod
    def load(self, seed: int) -> Splits:
        """Read everything into CPU tensors.

        Args:
            seed: The run's seed, for splits that are drawn at random.

        Raises:
            DataError: If files are missing (say which, and where to put them) or damaged.
        """


class Loss(Component, ABC):
    """A task loss: a sum of terms divided by a normaliser, both additive over batches.

    ``total(outputs, targets) / normaliser(outputs, targets)`` on a whole set is what torch's
    ``reduction="mean"`` gives; sums of both over batches keep that right for any batch sizes.
    """

    kind = "loss"

    @abstractmethod
    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum of the loss terms of a batch in nats (or squared units): a differentiable scalar."""

    @abstractmethod
    def normaliser(self, outputs: Tensor, targets: Tensor) -> float:
        """What the sum of the terms is divided by: examples, tokens, outputs or class weights."""

    def check(self, targets: Tensor) -> None:
        """Refuse targets for which the loss has no meaning; called once for each split of a run.

        Raises:
            DataError: Saying what was found and what would be accepted.
        """

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of one batch, as training takes it; override where one call is faster."""
        return self.total(outputs, targets) / self.normaliser(outputs, targets)

    def ggn_factor(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """Columns ``S_k``, each in the shape of ``outputs``, with ``Σ_k S_k S_kᵀ`` the Hessian.

        The Hessian is that of :meth:`total` with respect to the outputs. Within one column,
        different loss terms of one example must not both be non-zero: their products with the
        Jacobian would mix. Different examples share columns.
        """
        raise UnsupportedError(
            f"loss {self.name!r} gives no GGN factor, which GGN statistics need; "
            "use a criterion without curvature, or a loss that defines ggn_factor"
        )

    def ggn_rank(self, outputs: Tensor, targets: Tensor) -> int:
        """How many columns :meth:`ggn_factor` yields; by default one for every output of an example."""
        return outputs[0].numel()

    def term_gradients(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """Gradients of the loss terms in the outputs, for the empirical Fisher.

        Columns in the shape of ``outputs``; within one column an example has at most one term. By default
        an example is one term: override where :meth:`total` sums several per example (tokens, outputs).
        """
        leaf = outputs.detach().requires_grad_()
        self.total(leaf, targets).backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        yield leaf.grad

    def term_count(self, outputs: Tensor, targets: Tensor) -> int:
        """How many columns :meth:`term_gradients` yields."""
        return 1

    def draw(self, outputs: Tensor, targets: Tensor, generator: Generator) -> Tensor:
        """Draw a column ``s`` with mean zero and ``E[s sᵀ]`` the Hessian of :meth:`total` in the outputs.

        The gradient for labels drawn from the model's own predictive distribution, where there is one; by
        default the columns of :meth:`ggn_factor` with random signs.

        Args:
            outputs: Detached.
            targets: The batch's; for masks and weights, labels do not enter.
            generator: On the CPU, so that every device draws the same.
        """
        total = outputs.new_zeros(outputs.shape)
        for column in self.ggn_factor(outputs, targets):
            coins = outputs.new_empty(len(outputs), device="cpu").bernoulli_(0.5, generator=generator)
            total += column * (2 * coins - 1).to(outputs).view(-1, *(1,) * (outputs.ndim - 1))
        return total

    def errors(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, int] | None:
        """Number of wrong predictions and of predictions, or ``None`` for a regression task."""
        return None


class Criterion(Component, ABC):
    """A formula from weights and statistics to a saliency per weight; higher = keep.

    A criterion may also define:

    * ``predicted_delta_loss(weights, statistics, masks) -> float``: its model's value for removing
      the weights that ``masks`` drops, with its sign;
    * ``update(weights, statistics, masks) -> {name: Tensor}``: new values for surviving weights;
    * ``select(weights, statistics, masks, budget) -> masks``: joint selection, in place of a selector.

    ``weights`` hold exact zeros where a weight is already pruned; tensors passed in must not be changed.
    """

    kind = "criterion"
    requires: frozenset[str | Statistic] | frozenset[str] | frozenset[Statistic] = frozenset()
    lam: float = 0.0
    """Locality weight λ, set by the engine."""
    damps: ClassVar[bool] = False
    """True where λ goes into the criterion's own damping (criteria with an update), not the saliency."""

    def check(self, layers: Sequence[Layer], budgets: Sequence[int]) -> None:
        """Refuse, before anything is computed, a schedule that a criterion with ``select`` cannot follow.

        Raises:
            SpecError: If it contradicts the options.
        """

    def saliency(self, weights: Tensors, statistics: Mapping[Any, Tensors]) -> Mapping[str, Tensor]:
        """Return one finite tensor per weight tensor, in its shape, without the λ term.

        Every criterion defines this or ``select``.

        Raises:
            UnsupportedError: If the criterion chooses masks itself.
        """
        raise UnsupportedError(f"criterion {self.name!r} chooses masks itself and has no saliency")


class Scheduler(Component, ABC):
    """Decides the sparsity levels κ₁ ≤ … ≤ κ_π, each in [0, 1)."""

    kind = "scheduler"

    @abstractmethod
    def levels(self) -> Sequence[float]:
        """Return the whole schedule."""


class Selector(Component, ABC):
    """Spends a budget: turns saliencies into masks."""

    kind = "selector"

    def check(self, layers: Sequence[Layer], budgets: Sequence[int]) -> None:
        """Refuse, before anything is computed, a schedule that this selector cannot follow.

        Raises:
            SpecError: If it contradicts the options.
        """

    @abstractmethod
    def select(self, saliency: Tensors, masks: Tensors, budget: int) -> dict[str, Tensor]:
        """Return masks with exactly ``budget`` weights pruned in all, none of them revived.

        Args:
            saliency: One finite tensor per parameter, in ``named_parameters()`` order.
            masks: What is kept now; weights already pruned are never ranked.
            budget: Number of pruned weights over all tensors after this step.
        """


class Estimator(Component, ABC):
    """A statistic of the loss at fixed weights, summed batch by batch in a pass that others share."""

    kind = "statistic"
    captures: ClassVar[bool] = False
    """True if :attr:`ForwardPass.uses` is needed: what entered and left every use of a weight."""
    second_order: ClassVar[bool] = False
    """True if the graph is differentiated twice: slices are smaller, and attention takes its plain kernel."""
    needs_data: ClassVar[bool] = True
    additive: ClassVar[bool] = True
    """True if what several processes find, each on its examples and over everyone's normaliser, may be summed.

    A process may get no batch: :meth:`finish` then returns zeros. A statistic that is not additive is refused
    where there are several processes; without data it is process 0's.
    """

    def check(self, layers: Sequence[Layer], budget: int) -> str | None:
        """Refuse, before anything is computed, what cannot be had for such layers in so many bytes.

        Returns:
            What it will take, in words, if that is worth telling a user who is about to wait for it.

        Raises:
            UnsupportedError: Saying what it would take, and what would fit.
        """
        return None

    def start(self, problem: Problem) -> None:
        """Called once, before the first batch."""

    def add(self, batch: ForwardPass) -> None:
        """Called once per batch, with the network's forward pass done and its graph alive."""

    @abstractmethod
    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Return the statistic, one tensor per parameter; ``normaliser`` is the loss's, over all examples."""


@dataclass(frozen=True)
class Series:
    """One array that a probe measured, with what its axes mean."""

    values: Any
    axes: tuple[str, ...]
    units: str = ""


@dataclass(frozen=True)
class ProbeRecord:
    """What a probe found: arrays for the results file and a summary for ``inspect --json``.

    ``groups`` maps a group (say, ``dense_to_pruned``) to its named arrays.
    """

    groups: Mapping[str, Mapping[str, Series]]
    summary: Mapping[str, Any]
    kind_version: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Probe(Component, ABC):
    """Measures the loss landscape after the run; cannot change the run's results or random state."""

    kind = "probe"

    @abstractmethod
    def measure(self, landscape: Landscape, generator: Generator) -> ProbeRecord:
        """Measure, using only ``landscape`` and randomness from ``generator``."""


class Recorder(Component):
    """Stores what happened. Every method is optional; called in the order written here."""

    kind = "recorder"

    def started(self, run: RunView) -> None:
        """The run starts, or goes on after an interruption: bring the record up to ``run``."""

    def epoch_finished(self, run: RunView, phase: str) -> None:
        """A training epoch of ``phase`` is done; its row is the last of ``run.history[phase]``."""

    def phase_finished(self, run: RunView, phase: str) -> None:
        """``phase`` (``dense``, ``pruned``, ``finetuned``) is done; its metrics and weights are in ``run``."""

    def step_finished(self, run: RunView, step: StepRecord) -> None:
        """A pruning step is done."""

    def probe_finished(self, run: RunView, name: str, record: ProbeRecord) -> None:
        """A probe is done."""

    def finished(self, run: RunView) -> None:
        """The run is over; ``run.status`` says how (complete, failed, interrupted)."""


KINDS: dict[str, type[Component]] = {
    base.kind: base
    for base in (Model, Dataset, Loss, Criterion, Scheduler, Estimator, Selector, Probe, Recorder)
}
"""Singular name of each kind to its base class."""
