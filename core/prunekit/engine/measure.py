"""Measuring losses and errors, always in eval mode and always as sums over sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunekit.components import Loss
from prunekit.data import Split, Splits
from prunekit.engine.events import Metrics
from prunekit.errors import DataError
from prunekit.estimation.problem import call, pieces
from prunekit.estimation.quiet import evaluating

SLICE = 500
"""Examples per forward pass; results do not depend on it beyond rounding."""


def measure(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss: Loss,
    weights: Mapping[str, Tensor] | None = None,
) -> tuple[float, float | None]:
    """Loss and error of a set of examples.

    Args:
        model: Left as it was found.
        batches: ``(input, target)`` pairs of any sizes.
        loss: Its terms are summed in float64 and divided by the summed normaliser.
        weights: Parameters and buffers to use in place of the model's own.

    Returns:
        The loss, and the fraction of wrong predictions or ``None`` for a regression task.
    """
    total: Tensor | None = None
    wrong: Tensor | None = None
    normaliser, predictions = 0.0, 0
    with evaluating(model), torch.no_grad():
        for batch_inputs, batch_targets in batches:
            for inputs, targets in pieces(batch_inputs, batch_targets, SLICE):
                if weights is None:
                    outputs = call(model, inputs)
                else:
                    outputs = functional_call(model, dict(weights), (inputs,))
                value = loss.total(outputs, targets).double()
                total = value if total is None else total + value
                normaliser += loss.normaliser(outputs, targets)
                errors = loss.errors(outputs, targets)
                if errors is not None:
                    wrong = errors[0] if wrong is None else wrong + errors[0]
                    predictions += errors[1]
    if total is None or normaliser == 0:
        raise DataError("nothing to measure: the batches hold no examples that count for the loss")
    return float(total) / normaliser, float(
        wrong
    ) / predictions if wrong is not None and predictions else None


def metric_names(splits: Splits) -> tuple[str, ...]:
    """The metrics of a task: losses, and errors for classification."""
    kinds = ("loss", "error") if splits.task == "classification" else ("loss",)
    return tuple(f"{split}_{kind}" for kind in kinds for split in ("train", "valid", "test"))


def metrics(model: nn.Module, splits: Splits, loss: Loss, train_examples: int | None) -> Metrics:
    """Loss and, for classification, error on every split; ``None`` for a split that is not there."""
    found: Metrics = dict.fromkeys(metric_names(splits))
    for name, split in (("train", splits.train), ("valid", splits.valid), ("test", splits.test)):
        if split is None or not len(split):
            continue
        if name == "train" and train_examples is not None:
            split = Split(split.x[:train_examples], split.y[:train_examples])
        value, error = measure(model, [(split.x, split.y)], loss)
        found[f"{name}_loss"] = value
        if f"{name}_error" in found:
            found[f"{name}_error"] = error
    return found
