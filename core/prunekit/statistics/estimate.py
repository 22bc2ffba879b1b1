"""One pass over the batches that serves every statistic asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit import distributed
from prunekit.errors import DataError
from prunekit.losses.base import Loss
from prunekit.network.call import Batch, count, pieces, unpack
from prunekit.network.restore import differentiable, evaluating, refuse_batch_statistics
from prunekit.statistics.base import Estimator
from prunekit.statistics.hessian import refuse_wrong_second_derivatives
from prunekit.statistics.merge import merged, own_draws, refuse_unshareable
from prunekit.statistics.problem import Problem, forward
from prunekit.statistics.request import Estimates
from prunekit.statistics.verification import (
    Graph,
    Layout,
    Shapes,
    examine_anew,
    input_shapes,
    known_layout,
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
    estimators: Mapping[Any, Estimator],
    loss: Loss,
    parameters: Mapping[str, Tensor],
    generator: Generator,
    memory: int | None = None,
    masks: Mapping[str, Tensor] | None = None,
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

    Raises:
        UnsupportedError: If something cannot be computed, by name.
        DataError: If there are no examples.
    """
    problem = Problem(model, parameters, loss, own_draws(generator), memory or DEFAULT_MEMORY, masks)
    refuse_unshareable(estimators.values())
    normaliser, total = 0.0, 0.0
    layouts: dict[Shapes, Layout] = {}
    # Shapes examined now, because the network took another way than it was known for.
    fresh: set[Shapes] = set()
    working = {key: e for key, e in estimators.items() if e.needs_data}
    capture = any(e.captures for e in working.values())
    twice = any(e.second_order for e in working.values())
    if working:
        refuse_batch_statistics(model)
    with (
        torch.inference_mode(False),
        evaluating(model, tuple(parameters)),
        differentiable(twice),
        torch.enable_grad(),
    ):
        # Each draws from a generator of its own, so that none depends on which others share the pass.
        own = {key: replace(problem, generator=_copied(problem.generator)) for key in estimators}
        for key, estimator in estimators.items():
            estimator.start(own[key])
        seen = 0
        for given in batches if working else ():
            batch_inputs, batch_targets = unpack(given)
            shapes = input_shapes(batch_inputs)
            if count(batch_inputs) == 0:
                continue
            layout = layouts.get(shapes)
            if layout is None:
                if not capture:
                    layout = weigh_once(problem, shapes, batch_inputs, batch_targets)
                else:
                    layout = known_layout(problem, shapes) or examine_anew(
                        problem, shapes, batch_inputs, batch_targets
                    )
                if twice:
                    refuse_wrong_second_derivatives(problem, batch_inputs, batch_targets)
                layouts[shapes] = layout
            # The rest is for pieces of work, or for vectors that a Hessian is multiplied with.
            room = problem.memory // (2 * _TWICE) if twice else problem.memory * 3 // 4
            size = max(1, room // layout.bytes_per_example)
            for inputs, targets in pieces(batch_inputs, batch_targets, size):
                batch, uses = forward(problem, inputs, targets, capture)
                if capture:
                    graph = Graph(batch.outputs)
                    if graph.shape != layout.shape_of_graph and shapes not in fresh:
                        layout = examine_anew(problem, shapes, batch_inputs, batch_targets)
                        layouts[shapes] = layout
                        fresh.add(shapes)
                    batch.uses, batch.others = layout.sort(uses, graph, parameters, len(batch.outputs))
                batch.needed_again = len(working) > 1
                for key, estimator in working.items():
                    estimator.add(replace(batch, problem=own[key]))
                seen += count(inputs)
                normaliser += batch.normaliser
                total += float(batch.total.detach())
        if working:
            normaliser, total, examples = distributed.sums(normaliser, total, seen)
        if working and not examples:
            raise DataError(
                "the batches hold no examples; a re-iterable or a callable is needed, not a spent iterator"
            )
        if working and normaliser == 0:
            raise DataError("no example counts for the loss: its normaliser is zero (all targets ignored?)")
        statistics = Estimates({key: merged(e, e.finish(normaliser)) for key, e in estimators.items()})
    return Estimated(statistics, total / normaliser if working else None)


def _copied(generator: Generator) -> Generator:
    return Generator().set_state(generator.get_state())
