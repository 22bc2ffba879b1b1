"""The examples of a step, and what has been estimated on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cached_property

from torch import Generator, Tensor, nn

from prunekit.losses.base import Loss
from prunekit.network.call import Batch
from prunekit.network.measure import measure
from prunekit.statistics.base import Estimator
from prunekit.statistics.estimate import estimate
from prunekit.statistics.request import Estimates, Request


class Sample:
    """What does not change between the attempts of one step, since a step that is taken back leaves the same weights.

    Args:
        batches: Read at every pass; of several processes, each has its own.
        generator: Seeds what is drawn.
        fresh: Draws other examples, asked once, and only if somebody wants them; ``None``: there are none.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        generator: Generator,
        fresh: Callable[[], Sequence[Batch] | None] | None = None,
    ) -> None:
        self.batches = batches
        self.generator = generator
        self._draw = fresh
        self.statistics = Estimates()
        self._loss: float | None = None

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
        return self.statistics

    @cached_property
    def fresh(self) -> Sequence[Batch] | None:
        """Examples that nothing of the step was estimated on, the same for all its attempts; ``None``: there are none."""
        return None if self._draw is None else self._draw()

    @property
    def has_loss(self) -> bool:
        """Whether a pass over the data has brought the loss before the step."""
        return self._loss is not None

    def loss(self, model: nn.Module, loss: Loss) -> float:
        """The loss before the step: measured once, unless a pass over the data has brought it."""
        if self._loss is None:
            self._loss = measure(model, self.batches, loss)[0]
        return self._loss
