"""The one way to run a user's model on a batch, and to take batches apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from prunekit.errors import DataError, UnsupportedError
from prunekit.network.hooks import unhooked
from prunekit.network.lent import each, lent
from prunekit.network.remembered import one_pass

Inputs: TypeAlias = Tensor | Sequence[object] | Mapping[str, object]
"""A tensor, a tuple or list of arguments, or a mapping of keyword arguments."""

Batch: TypeAlias = Sequence[object] | Mapping[str, object]
"""``(input, target)``, or a mapping of keyword arguments with ``labels`` among them."""

T = TypeVar("T")

_LABELS = "labels"
_ACCEPTED = (
    "(input, target), or a mapping with 'labels' whose other entries are the model's keyword arguments"
)


def call(model: nn.Module, inputs: Inputs, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """Run a model and return the tensor that a loss takes.

    Args:
        model: Returns a tensor, an object or mapping with ``logits``, or a tuple that begins with the tensor.
        inputs: A tensor, a tuple or list of arguments, or a mapping of keyword arguments. Never changed: a
            model that works on its inputs in place gets copies.
        weights: Parameters and buffers to use in place of the model's own, by name; the others stay.

    Raises:
        UnsupportedError: If the model returns something else.
        DataError: If the inputs are of a type that the model's weights do not take.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> call(model, {"input": torch.ones(1, 2)}, {"weight": torch.full((1, 2), 3.0)})
        tensor([[6.]])
    """
    network, weights = _unwrapped(model, weights)
    try:
        with lent(model, inputs) as own, one_pass(model), unhooked(model):
            args, kwargs = _arguments(own)
            if weights is None:
                outputs = network(*args, **kwargs)
            else:
                outputs = functional_call(network, dict(weights), args, kwargs)
    except RuntimeError as error:
        _refuse_types(network, inputs, error)
        raise
    logits = outputs if isinstance(outputs, Tensor) else _logits(outputs)
    # A network that squeezes a batch of one gives a number, and the example is still the first axis.
    return logits if logits.ndim else logits.reshape(1)


def _arguments(inputs: Inputs) -> tuple[tuple[object, ...], dict[str, object]]:
    """Positional and keyword arguments of a pass."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})


def _refuse_types(model: nn.Module, inputs: Inputs, error: RuntimeError) -> None:
    """Say of which types inputs and weights are, where that is why the model fails.

    Raises:
        DataError: If it is.
    """
    dtypes = {t.dtype for t in tree_leaves(inputs) if isinstance(t, Tensor)}
    own = {p.dtype for p in model.parameters()}
    if not _TYPES.search(str(error)) or not own or dtypes <= own:
        return
    given, wanted = (", ".join(sorted(str(d).removeprefix("torch.") for d in some)) for some in (dtypes, own))
    some = next(iter(own))
    raise DataError(
        f"the model fails on inputs of type {given}, but its weights are {wanted}. Layers that compute with numbers take "
        f"inputs of their weights' type: x.to({some}), in a file x.astype('float32'). Integers are for embeddings"
    ) from error


_TYPES = re.compile(r"same dtype|scalar type|expected .* dtype|[Ii]nput type .* should be the same")


def _unwrapped(
    model: nn.Module, weights: Mapping[str, Tensor] | None
) -> tuple[nn.Module, Mapping[str, Tensor] | None]:
    """The network inside wrappers for several devices, which scatter examples, copy weights or wait for others."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
        if weights is not None:
            weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return model, weights


def unpack(batch: Batch) -> tuple[Inputs, Any]:
    """The input and the target of one batch; mappings of any class become dicts, at any depth.

    Raises:
        DataError: If it is neither a pair nor a mapping with ``labels``, saying what it is.

    Examples:
        >>> unpack({"input_ids": torch.ones(1, 2), "labels": torch.zeros(1)})
        ({'input_ids': tensor([[1., 1.]])}, tensor([0.]))
    """
    if isinstance(batch, Mapping):
        if _LABELS not in batch:
            raise DataError(
                f"a batch is {_described(batch)} without 'labels'; accepted is {_ACCEPTED}. "
                "Where it is only the input, pair it with its target: (batch, target)"
            )
        inputs: Any = {key: _plain(value) for key, value in batch.items() if key != _LABELS}
        target = batch[_LABELS]
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, target = _plain(batch[0]), batch[1]
    else:
        raise DataError(
            f"a batch is {_described(batch)}; accepted is {_ACCEPTED}. For a single batch, put it in a list"
        )
    if not isinstance(inputs, Tensor):
        _check(inputs)
    return ordinary(inputs), ordinary(target)


def ordinary(data: T) -> T:
    """The same with copies of tensors that were made in inference mode, which no graph can hold."""

    def copy(leaf: object) -> object:
        if not isinstance(leaf, Tensor) or not leaf.is_inference():
            return leaf
        with torch.inference_mode(False):
            return leaf.clone()

    return each(copy, data)


def count(inputs: Inputs) -> int:
    """Number of examples: the first axis of the first tensor that has one."""
    if isinstance(inputs, Tensor):
        return len(inputs)
    return len(next(leaf for leaf in tree_leaves(inputs) if _has_examples(leaf)))


def rows(data: T, start: int, stop: int) -> T:
    """Slice the first axis of every tensor; what is no tensor stays as it is."""
    return each(lambda t: t[start:stop] if _has_examples(t) else t, data)


def few_examples(data: T, number: int = 3) -> T:
    """Copies of the first examples, again from the start where there are fewer."""
    return picked(data, range(number))


def picked(data: T, numbers: Iterable[int]) -> T:
    """Copies of the examples of these numbers, again from the start where there are fewer."""
    wanted = torch.tensor(list(numbers), dtype=torch.long, device="cpu")

    def pick(leaf: object) -> object:
        return leaf[(wanted % len(leaf)).to(leaf.device)] if _has_examples(leaf) else leaf

    return each(pick, data)


def pieces(inputs: Inputs, targets: T, size: int) -> Iterator[tuple[Inputs, T]]:
    """Cut a batch into slices of at most ``size`` examples."""
    n = count(inputs)
    if n <= size:
        yield inputs, targets
        return
    for start in range(0, n, size):
        yield rows(inputs, start, start + size), rows(targets, start, start + size)


def _has_examples(leaf: object) -> TypeGuard[Tensor]:
    return isinstance(leaf, Tensor) and leaf.ndim > 0


def _plain(data: Any) -> Any:
    """Without mappings that torch does not look into, such as transformers' ``BatchEncoding``."""
    if isinstance(data, Mapping):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*map(_plain, data))
    if type(data) in (tuple, list):
        return type(data)(map(_plain, data))
    return data


def _check(inputs: object) -> None:
    """Refuse inputs that are no arguments, or whose tensors disagree about the number of examples."""
    if not isinstance(inputs, tuple | list | dict):
        raise DataError(
            f"a batch's input is {_described(inputs)}; accepted is a tensor, a tuple or list of arguments, or "
            "a mapping of keyword arguments"
        )
    counts = [len(leaf) for leaf in tree_leaves(inputs) if _has_examples(leaf)]
    if not counts:
        raise DataError(f"a batch's input is {_described(inputs)}, and none of its entries is a tensor")
    if len(set(counts)) > 1:
        raise DataError(
            f"a batch's input is {_described(inputs)}; all of its tensors need the example on their first axis, "
            f"but these have {', '.join(map(str, counts))}"
        )


def _logits(outputs: object) -> Tensor:
    """The tensor among what a model returned."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if logits is None and isinstance(outputs, tuple) and outputs:
        logits = outputs[0]
    if isinstance(logits, Tensor):
        return logits
    raise UnsupportedError(
        f"the model returned {_described(outputs)}; accepted is a tensor, an object or mapping with 'logits', or a "
        "tuple that begins with the tensor. Wrap the model in a torch.nn.Module whose forward returns the tensor "
        "that the loss takes"
    )


def _described(value: object) -> str:
    """What something is, and for a container, what is in it."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    name = type(value).__name__
    if isinstance(value, Mapping):
        return (
            f"{name} with {', '.join(f'{key!r}: {_short(item)}' for key, item in value.items()) or 'nothing'}"
        )
    if isinstance(value, tuple | list):
        return f"{name} of {', '.join(map(_short, value)) or 'nothing'}"
    return name


def _short(value: object) -> str:
    return f"Tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
