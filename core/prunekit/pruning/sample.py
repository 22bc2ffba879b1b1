"""The examples of a step, and what has been estimated on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cached_property

from torch import Generator, Tensor, nn

from prunekit.losses.base import Loss
from prunekit.network.call import Batch
from prunekit.network.measure import measure
from prunekit.pruning.first import First, FirstSteps
from prunekit.statistics.base import Estimator
from prunekit.statistics.estimate import estimate
from prunekit.statistics.request import Estimates, Request


class Sample:
    """What does not change between the attempts of one step, since a step that is taken back leaves the same weights.

    Args:
        batches: Read at every pass; of several processes, each has its own.
        generator: Seeds what is drawn.
        fresh: Draws other examples, asked once, and only if somebody wants them; ``None``: there are none.
        known: First steps of other runs, if this is one from the same weights on the same examples.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        generator: Generator,
        fresh: Callable[[], Sequence[Batch] | None] | None = None,
        known: FirstSteps | None = None,
    ) -> None:
        self.batches = batches
        self.generator = generator
        self._draw = fresh
        self.statistics = Estimates()
        self._loss: float | None = None
        self._known, self._first = known, First({}, generator.get_state())

    def estimate(
        self,
        model: nn.Module,
        loss: Loss,
        parameters: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        estimators: Mapping[Request, Estimator],
        memory: int | None,
    ) -> Estimates:
        """The statistics asked for; only what is not there yet is computed, from others where that is possible."""
        if self._known is not None and self._loss is None and not self.statistics:
            self._recall(self._known, estimators)
        missing = {}
        for request, estimator in estimators.items():
            if request in dict.keys(self.statistics):
                continue
            derived = estimator.derive(self.statistics)
            if derived is not None:
                self.statistics[request] = derived
            else:
                missing[request] = copy(estimator)
        if missing:
            estimated = estimate(
                model, self.batches, missing, loss, parameters, self.generator, memory, masks
            )
            self.statistics.update(estimated.statistics)
            if self._loss is None:
                self._loss = estimated.loss
        # An attempt with another λ has other inverses: those of the one before need not lie beside them.
        self.statistics = Estimates({request: self.statistics[request] for request in estimators})
        if self._known is not None:
            self._first = First(dict(self.statistics), self.generator.get_state(), self._loss, self.agreed)
            self._known.keep(self._first)
        return self.statistics

    def _recall(self, known: FirstSteps, estimators: Mapping[Request, Estimator]) -> None:
        """Take what another run has estimated, if all that is asked for is there or follows from it."""
        first = known.find(estimators)
        if first is None:
            return
        there, found = Estimates(first.statistics), Estimates()
        for request, estimator in estimators.items():
            # By dict's own: a statistic of another name's options is not this one.
            tensors = dict.get(there, request)
            tensors = estimator.derive(there) if tensors is None else tensors
            if tensors is None:
                return
            found[request] = tensors
        self.statistics, self._first, self._loss = found, first, first.loss
        self.generator.set_state(first.state)

    @cached_property
    def fresh(self) -> Sequence[Batch] | None:
        """Examples that nothing of the step was estimated on, the same for all its attempts; ``None``: there are none."""
        return None if self._draw is None else self._draw()

    @property
    def has_loss(self) -> bool:
        """Whether a pass over the data has brought the loss before the step."""
        return self._loss is not None

    @property
    def agreed(self) -> bool:
        """Whether all paths to the loss have been seen to agree on these examples."""
        return self._first.agreed

    def agree(self) -> None:
        """All paths to the loss agree."""
        self._first.agreed = True

    def know(self, loss: float) -> None:
        """The loss before the step, measured by whoever asks next."""
        self._loss = self._first.loss = loss

    def loss(self, model: nn.Module, loss: Loss) -> float:
        """The loss before the step: measured once, unless a pass over the data has brought it."""
        if self._loss is None:
            self._loss = self._first.loss = measure(model, self.batches, loss)[0]
        return self._loss
