"""Torch's own losses, which are known better than any function: their options say what the mean is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from prunekit.errors import SpecError

Normaliser = Callable[[Tensor, Tensor], float]

_OBJECTS: dict[type, str] = {
    nn.CrossEntropyLoss: "cross_entropy",
    nn.MSELoss: "mse",
    nn.BCEWithLogitsLoss: "bce_with_logits",
}
_FUNCTIONS: dict[str, object] = {
    "cross_entropy": F.cross_entropy,
    "mse": F.mse_loss,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
}
_OPTIONS = {
    "cross_entropy": {"weight", "ignore_index", "label_smoothing"},
    "mse": set[str](),
    "bce_with_logits": set[str](),
}
_IGNORED = -100  # what torch's functions of class indices leave out where nothing is said


def recognised(loss: object) -> dict[str, object] | None:
    """The mapping of the built-in loss that one of torch's objects or functions is, or ``None``.

    A function may come with keywords, in a ``functools.partial``.

    Raises:
        SpecError: If the reduction is not the mean.

    Examples:
        >>> recognised(nn.CrossEntropyLoss(label_smoothing=0.1))
        {'name': 'cross_entropy', 'ignore_index': -100, 'label_smoothing': 0.1}
    """
    function, given = _taken_apart(loss)
    reduction = given.pop("reduction", "mean")
    if reduction != "mean":
        name = getattr(function, "__name__", type(function).__name__)
        raise SpecError(
            f"loss: {name} has reduction {reduction!r}; accepted is reduction='mean'. Sums over batches and over "
            "examples are made here, so that batch sizes do not matter"
        )
    name = _OBJECTS.get(type(function))
    for known, its_function in _FUNCTIONS.items():
        name = known if function is its_function else name
    if name is None or not set(given) <= _OPTIONS[name]:
        return None
    weight = given.get("weight")
    if isinstance(weight, Tensor):
        given["weight"] = weight.tolist()
    return {"name": name, **given}


def class_normaliser(loss: object) -> Normaliser | None:
    """What the mean of ``nll_loss`` is over: targets that count, by class weight; ``None`` for other losses."""
    function, given = _taken_apart(loss)
    if function is not F.nll_loss and type(function) is not nn.NLLLoss:
        return None
    ignored, weight = given.get("ignore_index", _IGNORED), given.get("weight")

    def normaliser(outputs: Tensor, targets: Tensor) -> float:
        counted = targets[targets != ignored]
        return float(
            len(counted)
            if not isinstance(weight, Tensor)
            else weight.double().to(counted.device)[counted].sum()
        )

    return normaliser


def _taken_apart(loss: object) -> tuple[object, dict[str, object]]:
    """The function or object, and the options that it has been given."""
    if isinstance(loss, partial) and not loss.args:
        return loss.func, _set(loss.keywords)
    if isinstance(loss, nn.modules.loss._Loss):
        keys = ("reduction", "weight", "pos_weight", "ignore_index", "label_smoothing")
        return loss, _set({key: getattr(loss, key, None) for key in keys})
    return loss, {}


def _set(options: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in options.items() if value is not None}
