"""The one way to run a model on a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


def call(model: nn.Module, inputs: Any) -> Tensor:
    """Run the model on a tensor, a tuple of positional arguments or a mapping of keyword arguments."""
    if isinstance(inputs, Tensor):
        outputs = model(inputs)
    elif isinstance(inputs, Mapping):
        outputs = model(**inputs)
    else:
        outputs = model(*inputs)
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"the model returned {type(outputs).__name__}; prunekit needs the tensor that the loss takes "
            "(wrap the model in a module that returns it)"
        )
    return outputs


def count(inputs: Any) -> int:
    """Number of examples: the first axis of the first tensor."""
    return int(next(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)).shape[0])


def rows(data: Any, start: int, stop: int) -> Any:
    """Slice the first axis of every tensor."""
    return tree_map(lambda t: t[start:stop] if isinstance(t, Tensor) else t, data)


def few_examples(data: Any, number: int = 3) -> Any:
    """The first examples, again from the start where there are fewer."""
    picked = torch.arange(number) % count(data)
    return tree_map(lambda t: t[picked.to(t.device)] if isinstance(t, Tensor) and t.ndim else t, data)


def pieces(inputs: Any, targets: Any, size: int) -> Iterator[tuple[Any, Any]]:
    """Cut a batch into slices of at most ``size`` examples."""
    n = count(inputs)
    if n <= size:
        yield inputs, targets
        return
    for start in range(0, n, size):
        yield rows(inputs, start, start + size), rows(targets, start, start + size)
