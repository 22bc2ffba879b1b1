"""The landscape at one moment of a run, for probes: read-only by construction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NoReturn, Protocol, TypeVar

import torch
from torch import Generator, Tensor, nn

from prunekit.data import Split, Splits
from prunekit.errors import DataError, RunError
from prunekit.losses.base import Loss
from prunekit.masks.axes import layers_of
from prunekit.masks.weights import Layer
from prunekit.network.call import Batch, count, unpack
from prunekit.network.measure import measure_loss, own_part
from prunekit.network.restore import evaluating, holding, named_tensors
from prunekit.observing.journal import Journal
from prunekit.records import StepRecord
from prunekit.statistics.base import Estimator
from prunekit.statistics.deletion import Deletions
from prunekit.statistics.estimate import DEFAULT_MEMORY, estimate
from prunekit.statistics.joint import JointModel
from prunekit.statistics.line import Line, LineDerivatives
from prunekit.statistics.operator import Operator
from prunekit.statistics.paths import Paths, paths
from prunekit.statistics.request import Estimates, Request
from prunekit.statistics.sensitivity import Sensitivity

T = TypeVar("T")
_DELETED = 1 << 13
"""Weights whose deletions are measured as one piece; beginning anew costs a few passes for each."""
Batches = Iterable[Batch]
Estimators = Callable[[Iterable[Request]], Mapping[Request, Estimator]]
"""Builds the estimators of some requests."""
Data = Split | Batches
"""A split, or batches of one's own."""


class Ranking(Protocol):
    """What a criterion makes of weights and statistics."""

    @property
    def requests(self) -> frozenset[Request]:
        """The statistics that it needs."""
        ...

    def saliency(
        self,
        weights: Mapping[str, Tensor],
        statistics: Estimates,
        masks: Mapping[str, Tensor],
        layers: Sequence[Layer],
    ) -> dict[str, Tensor]:
        """A saliency for each weight, the λ term included; higher = keep."""
        ...


def _no_criteria(criterion: object) -> NoReturn:
    raise RunError(f"criterion {criterion!r}: there are no criteria to ask at this moment")


@dataclass(frozen=True)
class Surroundings:
    """What all moments of a run share.

    Attributes:
        model: Gives the architecture and the weights now; left as it was found.
        loss: The task loss.
        estimators: Builds the estimators of some requests.
        splits: The run's data; ``None`` where there are none.
        phases: Networks of the run so far, ``dense``, ``pruned``, ``finetuned``, to parameters and buffers.
        memory: Bytes for activations and products.
        ranking: Builds a criterion for comparison, from its name or a mapping with the spec's keys.
    """

    model: nn.Module
    loss: Loss
    estimators: Estimators
    splits: Splits | None = None
    phases: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    memory: int | None = None
    ranking: Callable[[object], Ranking] = _no_criteria


class Moment:
    """Weights, masks, data, and the loss at any weights. Whatever is handed out is a copy.

    Attributes:
        name: ``dense``, ``step``, ``pruned``, ``finetuned`` or ``end``; ``proposal`` before a step is applied.
        step: Number of the step, from 1, at a step; else ``None``.
    """

    step: int | None = None

    def __init__(self, name: str, surroundings: Surroundings, masks: Mapping[str, Tensor]) -> None:
        self.name = name
        self._model, self._loss, self._masks = surroundings.model, surroundings.loss, masks
        self._splits, self._phases = surroundings.splits, surroundings.phases
        self._estimators, self._memory = surroundings.estimators, surroundings.memory
        self._ranking = surroundings.ranking
        self.journal = Journal()
        """The engine's; the pieces that the probe has measured so far."""

    def once(self, piece: Callable[[], T], generator: Generator | None = None) -> T:
        """A piece of a long measurement, which a resumed run does not measure again.

        Pieces must come in the same order each time. Progress is shown by them.

        Args:
            piece: Returns numbers, texts and tensors, in lists, tuples and mappings.
            generator: What it draws from, if it draws.
        """
        return self.journal.piece(piece, generator)

    def expects(self, pieces: int) -> None:
        """Say how many pieces there will be, so that progress can show the time left."""
        self.journal.total = pieces

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Measure many losses faster: setting up and restoring the model is done once for all of them."""
        with evaluating(self._model):
            yield

    @property
    def phases(self) -> tuple[str, ...]:
        """Which networks there are so far, in the order of the run."""
        return tuple(self._phases)

    @property
    def prunable(self) -> tuple[str, ...]:
        """Names of the prunable parameters."""
        return tuple(self._masks)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters; what else :meth:`weights` has are buffers."""
        return tuple(name for name, _ in self._model.named_parameters())

    @property
    def layers(self) -> list[Layer]:
        """The prunable tensors: the position of each among all weights, and the axes of its inputs and outputs."""
        return layers_of(self._model, self._parameters())

    def weights(self, phase: str | None = None) -> dict[str, Tensor]:
        """Copies of parameters and buffers, now or of a phase, on the model's device."""
        if phase is None:
            return {name: t.detach().clone() for name, t in named_tensors(self._model).items()}
        device = next(iter(self._masks.values())).device  # after resuming, finished phases lie on the CPU
        return {name: t.to(device, copy=True) for name, t in self._phases[phase].items()}

    def masks(self) -> dict[str, Tensor]:
        """Copies of the masks, ``True`` = kept."""
        return {name: m.clone() for name, m in self._masks.items()}

    def lent(self) -> dict[str, object]:
        """What it hands out as it is, in words to tensors: a probe must not change it."""
        splits = self._splits
        named = {} if splits is None else {"train": splits.train, "valid": splits.valid, "test": splits.test}
        return {
            f"the {name} split": (split.inputs, split.y) for name, split in named.items() if split is not None
        }

    def split(self, name: str, examples: int | None = None) -> Split | None:
        """``train``, ``valid`` or ``test``, or its first examples; ``None`` if there is no such split."""
        split: Split | None = getattr(self._splits, name) if self._splits is not None else None
        if split is None or not len(split):
            return None
        return split.first(examples)

    @property
    def least_loss(self) -> float | None:
        """What no loss of this kind falls below, where there is such a number."""
        return self._loss.least

    def loss(self, weights: Mapping[str, Tensor] | None = None, data: Data | None = None) -> float:
        """Loss of a set of examples at these parameters and buffers (now, by default), in eval mode.

        A piece of its own; see :meth:`once`.
        """
        return self.once(lambda: measure_loss(self._model, self._batches(data), self._loss, weights))

    def estimate(
        self,
        requests: Iterable[Request],
        generator: Generator,
        weights: Mapping[str, Tensor] | None = None,
        data: Data | None = None,
    ) -> Estimates:
        """Statistics of the prunable weights, by request; in eval mode.

        Args:
            requests: Names, or :class:`prunekit.Statistic` with options.
            generator: For statistics that draw.
            weights: Parameters and buffers to take them at; default: the current ones.
            data: As for :meth:`loss`.
        """
        wanted = frozenset(requests)
        with self._at(weights):
            return estimate(
                self._model,
                self._batches(data),
                self._estimators(wanted),
                self._loss,
                self._parameters(),
                generator,
                self._memory,
                self._masks,
            ).statistics

    def gradient(
        self, weights: Mapping[str, Tensor] | None = None, data: Data | None = None
    ) -> dict[str, Tensor]:
        """∂L/∂θ of the prunable weights, pruned ones included, by parameter."""
        return dict(self.estimate(["gradient"], Generator(), weights, data)["gradient"])

    def saliency(
        self,
        criterion: object,
        generator: Generator,
        weights: Mapping[str, Tensor] | None = None,
        data: Data | None = None,
    ) -> dict[str, Tensor]:
        """A criterion's saliencies, the λ term included; higher = keep.

        Args:
            criterion: A name, or a mapping with the spec's keys.
            generator: For statistics that draw.
            weights: Parameters and buffers to take them at; default: the current ones.
            data: As for :meth:`loss`.

        Returns:
            By prunable parameter; meaningless where a weight is pruned.

        Raises:
            SpecError, PluginError: If there is no such criterion.
            UnsupportedError: If it has no saliency, or its statistics cannot be computed.
        """
        ranking = self._ranking(criterion)
        found = self.estimate(ranking.requests, generator, weights, data) if ranking.requests else Estimates()
        now = self.weights() if weights is None else weights
        own = {
            name: now[name].to(torch.promote_types(now[name].dtype, torch.float32)) for name in self._masks
        }
        return ranking.saliency(own, found, self.masks(), self.layers)

    def deletions(
        self,
        places: Mapping[str, Tensor] | None = None,
        weights: Mapping[str, Tensor] | None = None,
        data: Data | None = None,
    ) -> dict[str, Tensor]:
        """The true change of the loss on deleting single weights, many in one pass where the layer allows; in eval mode.

        Args:
            places: Prunable parameter to the flat indices of weights; default: all that are kept.
            weights: Parameters and buffers to delete them from; default: the current ones.
            data: As for :meth:`loss`.

        Returns:
            By parameter, float64, in the order of ``places``.
        """
        if places is None:
            places = {name: mask.flatten().nonzero().squeeze(1) for name, mask in self._masks.items()}
        parts = list(_parts(places))
        if self.journal.total is None:
            self.expects(len(parts))
        batches = list(self._batches(data))
        found: dict[str, list[Tensor]] = {name: [] for name in places}
        with self._at(weights):
            deletions = Deletions(self._model, self._loss, self._parameters(), self._memory or DEFAULT_MEMORY)
            for part in parts:
                for name, changes in self.once(partial(deletions.changes, batches, part)).items():
                    found[name].append(changes)
        return {name: torch.cat(changes) for name, changes in found.items()}

    def sensitivity(
        self,
        generator: Generator,
        weights: Mapping[str, Tensor] | None = None,
        data: Data | None = None,
    ) -> dict[str, Tensor]:
        """Squared derivatives of a random combination of each example's outputs, summed over examples, by parameter.

        Zero exactly where no example's outputs depend on a weight. Arguments are those of :meth:`saliency`.
        """
        with self._at(weights):
            found = estimate(
                self._model,
                self._batches(data),
                {"sensitivity": Sensitivity()},
                self._loss,
                self._parameters(),
                generator,
                self._memory,
                self._masks,
            )
        return dict(found.statistics["sensitivity"])

    def paths(self, data: Data | None = None) -> Paths:
        """Which weights lie on a path from the inputs to the outputs through those that are kept.

        Args:
            data: As for :meth:`loss`; an example of it is enough.

        Raises:
            UnsupportedError: If the network does something whose paths are not known; the message says what.
            DataError: If there is no example.
        """
        # Of several processes, one may have no part of a split.
        for batch in [(data.x, data.y)] if isinstance(data, Split) else self._batches(data):
            inputs, _ = unpack(batch)
            if count(inputs):
                return paths(self._model, inputs, self._masks)
        raise DataError("there is no example to follow through the network")

    def operator(
        self,
        kind: Literal["ggn", "hessian", "empirical_fisher"],
        data: Data | None = None,
        parameters: Sequence[str] | None = None,
    ) -> Operator:
        """A curvature matrix at the current weights, known by its products: :meth:`product` for many of them.

        Args:
            kind: Which matrix.
            data: As for :meth:`loss`.
            parameters: Names of the prunable ones that it covers; default: all.
        """
        batches = list(self._batches(data))
        covered = {
            name: p for name, p in self._parameters().items() if parameters is None or name in parameters
        }
        memory = self._memory or DEFAULT_MEMORY
        return Operator(self._model, lambda: batches, kind, self._loss, covered, memory)

    def product(
        self,
        kind: Literal["ggn", "hessian", "empirical_fisher"],
        vector: Mapping[str, Tensor],
        weights: Mapping[str, Tensor] | None = None,
        data: Data | None = None,
    ) -> dict[str, Tensor]:
        """A curvature matrix over the prunable weights times a vector, ``{parameter: tensor}``; in eval mode."""
        with self._at(weights):
            return self.operator(kind, data) @ vector

    def along(
        self,
        direction: Mapping[str, Tensor],
        order: int = 2,
        weights: Mapping[str, Tensor] | None = None,
        data: Data | None = None,
    ) -> LineDerivatives:
        """Derivatives of ``t ↦ L(θ + t·Δ)`` at t = 0, and ΔᵀGΔ; in eval mode, in one forward pass.

        Args:
            direction: Δ by parameter, prunable or not; what is left out does not move.
            order: Order of the highest derivative, at least 1.
            weights: θ, parameters and buffers; default: the current ones.
            data: As for :meth:`loss`.

        Raises:
            UnsupportedError: If they cannot be computed for this network; the message says why.
        """
        with self._at(weights):
            moved = {name: self._model.get_parameter(name) for name in direction}
            return self._line(moved).derivatives(self._batches(data), direction, order)

    def gram(
        self,
        directions: Sequence[Mapping[str, Tensor]],
        weights: Mapping[str, Tensor] | None = None,
        data: Data | None = None,
    ) -> list[list[float]]:
        """``Δ_iᵀGΔ_j`` of some directions, G the generalised Gauss-Newton matrix; one forward pass for each."""
        with self._at(weights):
            return self._line({}).gram(self._batches(data), directions)

    def _line(self, further: Mapping[str, Tensor]) -> Line:
        parameters = self._parameters() | dict(further)
        return Line(self._model, self._loss, parameters, self._memory or DEFAULT_MEMORY)

    def _parameters(self) -> dict[str, Tensor]:
        return {name: self._model.get_parameter(name) for name in self._masks}

    @contextmanager
    def _at(self, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
        if weights is None:
            yield
            return
        with holding(self._model, weights):
            yield

    def _batches(self, data: Data | None) -> Batches:
        if isinstance(data, Split):
            return own_part(data)
        if data is not None:
            return data
        raise DataError(
            f'moment {self.name!r}: say which examples to use, for example data=moment.split("train")'
        )


def _parts(places: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Indices of weights by parameter, so many at a time; every parameter is in one part at least."""
    for name, indices in places.items():
        for part in torch.split(indices, _DELETED) if len(indices) else (indices,):
            yield {name: part}


class StepMoment(Moment):
    """A step: the weights before, the change that it makes, its examples, and what was estimated on them.

    Named ``step``; or ``proposal``, where a scheduler wants to know something about a step before it is applied.
    The current weights are then those before. Without ``data``, everything is measured on the step's examples.

    Attributes:
        step: Its number, from 1.
        sample: Its examples, as batches; with several processes, each has its own.
        statistics: What the criterion had estimated on them, at the weights before.
        predicted_delta_loss: The criterion's own model of the change.
        loss_before: Loss of its examples before the step.
        delta_loss: Change of the loss measured on them; ``None`` for a proposal.
        earlier: The records of the steps before.
        losses: Split to its loss before and after the step, where the run has measured the whole split.
    """

    def __init__(
        self,
        name: str,
        surroundings: Surroundings,
        masks: Mapping[str, Tensor],
        step: int,
        sample: Sequence[Batch],
        statistics: Estimates,
        before: Callable[[], dict[str, Tensor]],
        after: Callable[[], dict[str, Tensor]],
        predicted_delta_loss: float | None,
        loss_before: float,
        delta_loss: float | None = None,
        earlier: Sequence[StepRecord] = (),
        fresh: Callable[[], Sequence[Batch] | None] = lambda: None,
        masks_before: Mapping[str, Tensor] | None = None,
        joint_model: Callable[[], JointModel | None] = lambda: None,
    ) -> None:
        super().__init__(name, surroundings, masks)
        self.step, self.sample, self.statistics = step, sample, statistics
        self.predicted_delta_loss = predicted_delta_loss
        self.loss_before, self.delta_loss, self.earlier = loss_before, delta_loss, tuple(earlier)
        self.losses: dict[str, tuple[float, float]] = {}
        self._before, self._after, self._fresh = before, after, fresh
        self._masks_before, self._joint_model = masks_before or {}, joint_model

    def lent(self) -> dict[str, object]:
        """The step's examples and statistics too."""
        return {
            **super().lent(),
            "the sample": [unpack(batch) for batch in self.sample],
            "the statistic": self.statistics,
        }

    def close(self) -> None:
        """Release what the step holds, which may be large; it cannot be used afterwards."""
        self.statistics, self.sample = Estimates(), ()
        self._before = self._after = self._fresh = _over

    @property
    def fresh(self) -> Sequence[Batch] | None:
        """Examples that nothing of the step was estimated on, as many as the sample's; ``None`` if there are none."""
        return self._fresh()

    @property
    def joint_model(self) -> JointModel | None:
        """The model that the criterion minimises over all weights together, with this step's λ and damping.

        Raises:
            UnsupportedError: If it has one, but not with these options; the message says why.
        """
        return self._joint_model()

    def masks_before(self) -> dict[str, Tensor]:
        """Copies of the masks before the step, ``True`` = kept."""
        whole = {name: torch.ones_like(m) for name, m in self._masks.items()}
        return {name: self._masks_before.get(name, m).clone() for name, m in whole.items()}

    def before(self) -> dict[str, Tensor]:
        """Copies of parameters and buffers before the step."""
        return {**self.weights(), **self._before()}

    def after(self) -> dict[str, Tensor]:
        """Copies of parameters and buffers after the step, whether or not it is applied yet."""
        return {**self.weights(), **self._after()}

    def change(self) -> dict[str, Tensor]:
        """Δθ of the prunable weights, all that the step changes: weights that go and weights that are adjusted."""
        before = self._before()
        return {name: after - before[name] for name, after in self._after().items()}

    def _batches(self, data: Data | None) -> Batches:
        return self.sample if data is None else super()._batches(data)


def _over() -> NoReturn:
    raise RunError("the moment of this step is over: a probe may keep what it measured, not the moment")
