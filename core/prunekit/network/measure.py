"""Measuring losses and errors, always in eval mode and always as sums over sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit import distributed
from prunekit.data import Split, Splits
from prunekit.errors import DataError
from prunekit.lending import Lent
from prunekit.losses.base import Loss
from prunekit.losses.metric import Metric
from prunekit.network.call import Batch, Inputs, call, count, pieces, rows, unpack
from prunekit.network.restore import evaluating
from prunekit.records import Metrics

SLICE = 500
"""Examples per forward pass, at least; results do not depend on it beyond rounding."""

_SMALL = (
    1_000  # examples whose inputs are small: a tenth faster for an MLP, and wide layers still fit the memory
)
_ROOM = 1 << 20  # numbers of a slice's inputs
_TOKENS = 1 << 15  # of a slice: each has as many outputs as there are words
_ROOM_ON_GPU = 1 << 24  # where small slices leave it idle between kernels


def measure(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    weights: Mapping[str, Tensor] | None = None,
    at_once: int | None = None,
) -> tuple[float, float | None]:
    """Loss and error of a set of examples.

    Args:
        model: Left as it was found.
        batches: As :func:`~prunekit.network.call.unpack` takes them, of any sizes; of several processes, each has its own,
            maybe none.
        loss: Its terms are summed in float64 and divided by the summed normaliser.
        weights: Parameters and buffers to use in place of the model's own.
        at_once: Examples per forward pass; :data:`SLICE`, or more, by default.

    Returns:
        The loss, and the fraction of wrong predictions or ``None`` for a regression task.
    """
    with evaluating(model):
        return _measured(model, batches, loss, weights, at_once)


def measure_loss(
    model: nn.Module, batches: Iterable[Batch], loss: Loss, weights: Mapping[str, Tensor] | None = None
) -> float:
    """The loss alone, as :func:`measure` has it: at many points of a small network the errors are what there is to save."""
    with evaluating(model):
        return _measured(model, batches, loss, weights, errors=False)[0]


def _measured(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    weights: Mapping[str, Tensor] | None = None,
    at_once: int | None = None,
    further: Mapping[str, Metric] | None = None,
    found: dict[str, float | None] | None = None,
    errors: bool = True,
) -> tuple[float, float | None]:
    """The same inside :func:`~prunekit.network.restore.evaluating`; values of further metrics go into ``found``."""
    total: Tensor | float = 0.0
    wrong: Tensor | float = 0.0
    normaliser, predictions = 0.0, 0
    sums: dict[str, Tensor] = {}
    for batch in batches:
        batch_inputs, batch_targets = unpack(batch)
        if count(batch_inputs) == 0:
            continue
        for inputs, targets in pieces(batch_inputs, batch_targets, at_once or slice_size(batch_inputs)):
            outputs = call(model, inputs, weights).detach()
            lent = Lent({"the outputs": outputs, "the targets": targets})
            total = total + loss.total(outputs, targets).double()
            normaliser += loss.normaliser(outputs, targets)
            mistakes = loss.errors(outputs, targets) if errors else None
            lent.check(f"loss {loss.name!r}")
            for name, metric in (further or {}).items():
                part = metric.sums(outputs, targets, loss).double().cpu()
                sums[name] = sums[name] + part if name in sums else part
                lent.check(f"metric {name!r}")
            if mistakes is not None:
                wrong = wrong + mistakes[0]
                predictions += mistakes[1]
    loss_sum, wrong_sum, normaliser, predictions_sum = distributed.sums(
        float(total), float(wrong), normaliser, predictions
    )
    if normaliser == 0:
        raise DataError("nothing to measure: the batches hold no examples that count for the loss")
    if found is not None:
        for name, metric in (further or {}).items():
            found[name] = metric.value(_everyones(sums.get(name)))
    return loss_sum / normaliser, wrong_sum / predictions_sum if predictions_sum else None


def _everyones(sums: Tensor | None) -> list[float]:
    """Over all processes, in the order of their ranks; one may have no examples."""
    parts = [part for part in distributed.gather(None if sums is None else sums.tolist()) if part is not None]
    return [sum(values) for values in zip(*parts, strict=True)]


def slice_size(inputs: Inputs) -> int:
    """How many examples go through the network together: more of small ones, of tokens no more than of anything."""
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        first = next((t for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.ndim > 1), None)
        long = first is not None and not first.is_floating_point()
        return max(1, min(SLICE, _TOKENS // max(1, first.shape[1]))) if long and first is not None else SLICE
    size = max(1, inputs[0].numel())
    return max(SLICE, _ROOM_ON_GPU // size if inputs.is_cuda else min(_SMALL, _ROOM // size))


def own_part(split: Split) -> list[tuple[Inputs, Tensor]]:
    """This process's part of a split, as batches: all of it where there is one process."""
    part = distributed.shard(len(split))
    return [(rows(split.x, part.start, part.stop), split.y[part])]


def metric_names(splits: Splits, further: Iterable[str] = ()) -> tuple[str, ...]:
    """The metrics of a task: losses, errors for classification, and further ones by their labels."""
    kinds = ("loss", "error") if splits.task == "classification" else ("loss",)
    kinds = (*kinds, *further)
    return tuple(f"{split}_{kind}" for kind in kinds for split in ("train", "valid", "test"))


def metrics(
    model: nn.Module,
    splits: Splits,
    loss: Loss,
    train_examples: int | None,
    further: Mapping[str, Metric] | None = None,
) -> Metrics:
    """Loss and, for classification, error on every split, and further metrics; ``None`` for a split that is not there."""
    measured: Metrics = dict.fromkeys(metric_names(splits, further or ()))
    with evaluating(model):
        for name, split in (("train", splits.train), ("valid", splits.valid), ("test", splits.test)):
            if split is None or not len(split):
                continue
            if name == "train" and train_examples is not None:
                split = split.first(train_examples)
            more: dict[str, float | None] = {}
            value, error = _measured(model, own_part(split), loss, further=further, found=more)
            measured |= {f"{name}_{key}": number for key, number in more.items()}
            measured[f"{name}_loss"] = value
            if f"{name}_error" in measured:
                measured[f"{name}_error"] = error
    return measured
