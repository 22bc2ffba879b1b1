"""One pass over the batches that serves every statistic asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Generator, Tensor, nn

from prunekit import distributed
from prunekit.errors import DataError
from prunekit.lending import Lent
from prunekit.losses.base import Loss
from prunekit.network.call import Batch, Inputs, count, pieces, unpack
from prunekit.network.restore import differentiable, evaluating, refuse_batch_statistics
from prunekit.statistics.base import Estimator
from prunekit.statistics.hessian import refuse_wrong_second_derivatives
from prunekit.statistics.merge import merged, own_draws, refuse_unshareable
from prunekit.statistics.missing import missing_derivatives_named
from prunekit.statistics.problem import Problem, forward
from prunekit.statistics.request import Estimates, Request
from prunekit.statistics.verification import (
    Graph,
    Layout,
    Shapes,
    Ways,
    examine_anew,
    in_part,
    input_shapes,
    known_layout,
    refuse_cut,
    weigh_once,
)

DEFAULT_MEMORY = 512 << 20
"""Bytes for activations and products when the caller sets none."""

_TWICE = 3  # a gradient with its own graph keeps about three times as much as a forward pass


@dataclass(frozen=True)
class Estimated:
    """Statistics with the loss on the same examples, which comes with the forward pass.

    Attributes:
        statistics: Request to ``{parameter: tensor}``.
        loss: The loss on all batches together; ``None`` if no statistic needed the data.
    """

    statistics: Estimates
    loss: float | None


def estimate(
    model: nn.Module,
    batches: Iterable[Batch],
    estimators: Mapping[Request, Estimator],
    loss: Loss,
    parameters: Mapping[str, Tensor],
    generator: Generator,
    memory: int | None = None,
    masks: Mapping[str, Tensor] | None = None,
    room: int | None = None,
) -> Estimated:
    """Compute statistics of the loss at the current weights, in eval mode.

    Args:
        model: Left as it was found: parameters, buffers, ``.grad``, modes, ``requires_grad``, random state;
            also on error.
        batches: As :func:`~prunekit.network.call.unpack` takes them, read once; of several processes, each has its
            own, maybe none.
        estimators: Request to estimator; all share each batch's forward pass.
        loss: Its terms and normalisers are summed, so batch sizes do not matter.
        parameters: For which the statistics are wanted.
        generator: For estimators that draw.
        memory: Bytes for activations and products; larger batches are cut into slices.
        masks: What is kept, for statistics that cover only that.
        room: Bytes for activations alone, where they are to have less.

    Raises:
        UnsupportedError: If something cannot be computed, by name.
        DataError: If there are no examples.
    """
    problem = Problem(model, parameters, loss, own_draws(generator), memory or DEFAULT_MEMORY, masks)
    refuse_unshareable(estimators.values())
    reading = _Pass(problem, estimators, room)
    if reading.working:
        refuse_batch_statistics(model)
    with evaluating(model, tuple(parameters)), differentiable(reading.twice):
        for key, estimator in estimators.items():
            estimator.start(reading.problems[key])
            reading.check(estimator)
        for batch in batches if reading.working else ():
            inputs, targets = unpack(batch)
            with missing_derivatives_named(problem, inputs):
                reading.read(inputs, targets)
        normaliser, total = reading.sums()
        statistics = Estimates()
        for key, estimator in estimators.items():
            statistics[key] = merged(estimator, estimator.finish(normaliser))
            reading.check(estimator)
    return Estimated(statistics, total / normaliser if reading.working else None)


class _Pass:
    """One pass over the batches: layouts of the inputs met so far, and the sums that all estimators share.

    Args:
        problem: What is estimated.
        estimators: By request.
        room: Bytes for activations; the memory by default.

    Attributes:
        working: Those that need the data.
        problems: The problem as each estimator sees it. Each draws from a generator of its own, so that none depends on
            which others share the pass.
        twice: Whether graphs are differentiated twice.
    """

    def __init__(
        self, problem: Problem, estimators: Mapping[Request, Estimator], room: int | None = None
    ) -> None:
        self.problem, self.room = problem, room or problem.memory
        self.working = {key: e for key, e in estimators.items() if e.needs_data}
        self.problems = {key: replace(problem, generator=_copied(problem.generator)) for key in estimators}
        capturing = [e for e in self.working.values() if e.captures]
        self.ways = Ways(any(e.by_example for e in capturing), any(not e.by_example for e in capturing))
        self.capture = bool(capturing)
        self.twice = any(e.second_order for e in self.working.values())
        self._masks = Lent({"the mask": problem.masks or {}})
        self._weights: Lent | None = Lent({"the weights": problem.parameters})
        self._layouts: dict[Shapes, Layout] = {}
        # Shapes examined now, because the network took another way than it was known for.
        self._fresh: set[Shapes] = set()
        self._normaliser = 0.0
        self._total: Tensor | float = 0.0  # on the device until the end, which need not be waited for
        self._examples = 0

    def read(self, inputs: Inputs, targets: Any) -> None:
        """Run the network on a batch, in slices that fit the memory, and let every estimator add its part."""
        if count(inputs) == 0:
            return
        shapes = input_shapes(inputs)
        layout = self._layouts.get(shapes)
        if layout is None:
            layout = self._layouts[shapes] = self._find(shapes, inputs, targets)
        # The rest is for pieces of work, or for vectors that a Hessian is multiplied with.
        memory = self.room
        room = memory // (2 * _TWICE) if self.twice else memory * 3 // 4
        size = max(1, room // layout.bytes_per_example)
        examples, first = count(inputs), True
        for some, their_targets in pieces(inputs, targets, size):
            with in_part(layout, examples, count(some)):
                batch, uses = forward(self.problem, some, their_targets, self.capture)
            if self._weights is not None and not self._weights.intact:
                self._weights = None  # the network overwrites them itself; they are put back in the end
            if first and size < examples:
                refuse_cut(self.problem, inputs, batch.outputs)
            first = False
            if self.capture:
                graph = Graph(batch.outputs, self.problem.parameters)
                if graph.shape != layout.shape_of_graph and shapes not in self._fresh:
                    layout = self._layouts[shapes] = examine_anew(
                        self.problem, shapes, inputs, targets, self.ways
                    )
                    self._fresh.add(shapes)
                layout.sort(batch, uses, graph, self.ways)
            batch.needed_again = len(self.working) > 1
            lent = Lent({"the inputs": some, "the targets": their_targets, "the outputs": batch.outputs})
            for key, estimator in self.working.items():
                estimator.add(replace(batch, problem=self.problems[key]))
                lent.check(f"statistic {estimator.name!r}")
                self.check(estimator)
            self._examples += count(some)
            self._normaliser += batch.normaliser
            self._total = self._total + batch.total.detach().double()

    def check(self, estimator: Estimator) -> None:
        """Refuse an estimator that has just changed weights or masks.

        Raises:
            RunError: Naming it.
        """
        for lent in (self._masks, self._weights):
            if lent is not None:
                lent.check(f"statistic {estimator.name!r}")

    def _find(self, shapes: Shapes, inputs: Inputs, targets: Any) -> Layout:
        """The layout for inputs of a shape that this pass has not met."""
        problem = self.problem
        if self.capture:
            layout = known_layout(problem, shapes, self.ways) or examine_anew(
                problem, shapes, inputs, targets, self.ways
            )
        else:
            layout = weigh_once(problem, shapes, inputs, targets)
        if self.twice:
            refuse_wrong_second_derivatives(problem, inputs, targets)
        return layout

    def sums(self) -> tuple[float, float]:
        """The normaliser and the summed loss of all processes' examples.

        Raises:
            DataError: If there are none, or none counts.
        """
        if not self.working:
            return 0.0, 0.0
        normaliser, total, examples = distributed.sums(self._normaliser, float(self._total), self._examples)
        if not examples:
            raise DataError(
                "the batches hold no examples; a re-iterable or a callable is needed, not a spent iterator"
            )
        if normaliser == 0:
            raise DataError("no example counts for the loss: its normaliser is zero (all targets ignored?)")
        return normaliser, total


def _copied(generator: Generator) -> Generator:
    return Generator().set_state(generator.get_state())
