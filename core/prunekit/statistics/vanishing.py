"""Statistics that are zero in every weight: nothing is wrong with the sums, and yet they say nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from prunekit.errors import PrunekitError
from prunekit.losses.base import Loss
from prunekit.masks.weights import read_together
from prunekit.network.call import Batch, Inputs, call, rows, unpack
from prunekit.network.restore import evaluating
from prunekit.statistics.base import Estimator
from prunekit.statistics.request import Estimates, Request

LINEAR = (
    "the loss is linear in the network's outputs, so its GGN is zero (log_softmax inside the network with nll_loss, L1); "
    "let the network return logits and take the loss cross_entropy, or another curvature (empirical_fisher, hessian)"
)
_FLAT = (
    "it is zero in every weight: the loss has no curvature here that it could see, as with outputs that are saturated or "
    "do not depend on the weights"
)
_LEVEL = (
    "it is zero in every weight: the outputs do not depend on the weights in a way that autograd follows (detach, no_grad, "
    "rounding or argmax inside the network), or the loss is at a minimum on these examples (a network distilled from "
    "itself, say); take a criterion without the gradient, or other targets"
)

_FEW = 4096
_EXAMPLES = 8


def vanished(
    model: nn.Module,
    loss: Loss,
    batches: Callable[[], Sequence[Batch]],
    estimators: Mapping[Request, Estimator],
    statistics: Estimates,
    masks: Mapping[str, Tensor] | None = None,
) -> dict[str, str]:
    """The statistics that say nothing of any weight that is kept.

    Args:
        model: As it was estimated.
        loss: The task loss.
        batches: The examples; asked for only where the loss itself is to be looked at.
        estimators: What was estimated.
        statistics: What came of it.
        masks: What is kept; ``None`` for everything.

    Returns:
        The name of a statistic to why it is so, and what to do.
    """
    reasons: dict[str, str] = {}
    for request, estimator in estimators.items():
        name = estimator.name
        if name == "gradient" and _is_zero(statistics[request], masks):
            reasons[name] = _LEVEL
        elif name.endswith("_diagonal") and _is_zero(statistics[request], masks):
            of_outputs = name.startswith("ggn") and is_linear(model, loss, batches())
            reasons[name] = LINEAR if of_outputs else _FLAT
        elif _inverts_ggn(estimator) and is_linear(model, loss, batches()):
            reasons[name] = LINEAR
    return reasons


def _inverts_ggn(estimator: Estimator) -> bool:
    """Whether a statistic is made from the GGN and is never zero itself, since it is damped."""
    return str(getattr(estimator.options, "curvature", "")).startswith("ggn")


def is_linear(model: nn.Module, loss: Loss, batches: Sequence[Batch]) -> bool:
    """Whether the loss has no second derivative in the outputs, on the first batch: on a few examples, if they tell."""
    for inputs, targets in map(unpack, batches[:1]):
        few = rows(inputs, 0, _EXAMPLES), rows(targets, 0, _EXAMPLES)
        for some, theirs in (few, (inputs, targets)):
            try:
                columns = _columns(model, loss, some, theirs)
                first = next(columns, None)
                if first is None:  # with one class there is nothing to be curved
                    return False
                if bool(first.any()) or any(
                    bool(column.any()) for column in columns
                ):  # nearly always the first
                    return False
            except PrunekitError:
                return False
            except Exception:  # of a network that takes no part of a batch
                if some is inputs:
                    raise
        return True
    return False


def _columns(model: nn.Module, loss: Loss, inputs: Inputs, targets: Tensor) -> Iterator[Tensor]:
    with evaluating(model), torch.no_grad():
        outputs = call(model, inputs)
    return iter(loss.ggn_factor(outputs, targets))


def _is_zero(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None) -> bool:
    for part in slice(_FEW), slice(None):  # the first ones nearly always tell
        seen = (
            t.reshape(-1)[part]
            if masks is None
            else t.reshape(-1)[part].masked_fill(~masks[name].reshape(-1)[part].to(t.device), 0.0)
            for name, t in tensors.items()
        )
        if any(read_together(t.any() for t in seen)):
            return False
    return bool(tensors)
