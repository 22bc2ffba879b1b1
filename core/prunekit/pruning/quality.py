"""What `until` watches where there are no splits: a metric of the caller's own batches, or the caller's own function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache

from torch import Tensor, nn

from prunekit.errors import SpecError
from prunekit.losses.base import Loss
from prunekit.network.call import Batch
from prunekit.network.measure import measure
from prunekit.network.restore import evaluating, holding
from prunekit.pruning.step import Measure
from prunekit.pruning.until import watch

METRICS = ("valid_error", "valid_loss")


def watched(
    model: nn.Module,
    loss: Loss,
    metric: str,
    valid: Iterable[Batch] | Callable[[nn.Module], float] | None,
) -> Measure:
    """Measures a metric of proposals on the caller's batches.

    Args:
        model: The network.
        loss: Its task loss.
        metric: One of :data:`METRICS`; of a function, any.
        valid: Batches that can be read again, or a function of the model.

    Raises:
        SpecError: If there is nothing to measure the metric on, or the task has no such metric.
    """
    if isinstance(valid, Iterator):
        valid = list(valid)
    if valid is None or (metric not in METRICS and not callable(valid)):
        raise SpecError(
            f"until.metric: {metric!r} cannot be measured here; accepted are {' and '.join(METRICS)}, on the batches "
            "given as valid="
        )

    def value(weights: Mapping[str, Tensor]) -> float:
        if callable(valid):
            with holding(model, weights), evaluating(model):
                return float(valid(model))
        found, error = measure(model, valid, loss, weights)
        if metric == "valid_loss":
            return found
        if error is None:
            raise SpecError("until.metric: this loss counts no errors; accepted is valid_loss")
        return error

    return watch(value, cache(lambda: value({})))
