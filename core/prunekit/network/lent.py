"""Inputs that a model is lent: it gets copies until it has shown that it leaves such inputs as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from prunekit.errors import UnsupportedError

T = TypeVar("T")
_Kind: TypeAlias = tuple[bool, tuple[tuple[torch.Size, torch.dtype], ...]]

_SPARED: WeakKeyDictionary[nn.Module, set[_Kind]] = WeakKeyDictionary()
"""The inputs that a model has left as they were: whether in training, and their shapes and types."""


@contextmanager
def lent(model: nn.Module, inputs: T) -> Iterator[T]:
    """What a pass of the model may be given in place of its inputs, which are the caller's.

    A copy costs a small network a tenth of a gradient, so a model that has left such inputs alone gets the same memory.

    Raises:
        UnsupportedError: If it changes them all the same, which cannot be undone.
    """
    tensors = _tensors(inputs)
    if any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors)):
        yield copied(inputs)
        return
    kind = model.training, tuple((t.shape, t.dtype) for t in tensors)
    spared = _SPARED.setdefault(model, set())
    if kind not in spared:
        own = copied(inputs)
        yield own
        if _same(_tensors(own), tensors):
            spared.add(kind)
        return
    before = _versions(tensors)
    yield each(lambda t: t.detach() if isinstance(t, Tensor) else t, inputs)
    if _versions(tensors) != before:
        spared.clear()
        raise UnsupportedError(
            "the network has changed its inputs in place in this pass, but not in earlier ones, so the batch has lost its "
            "original values. Run it again with fresh batches, or let the network's forward work on a copy "
            "(x = x.clone())"
        )


def copied(data: T) -> T:
    """The same with every tensor copied."""
    return each(lambda t: t.clone() if isinstance(t, Tensor) else t, data)


def each(function: Callable[[Any], Any], data: T) -> T:
    """A tensor, or a structure of them, with a function applied to every leaf."""
    mapped: T = function(data) if isinstance(data, Tensor) else tree_map(function, data)
    return mapped


def _tensors(data: object) -> list[Tensor]:
    return [data] if isinstance(data, Tensor) else [t for t in tree_leaves(data) if isinstance(t, Tensor)]


def _versions(tensors: list[Tensor]) -> list[int]:
    """How often each has been changed; in inference mode none can be."""
    return [-1 if t.is_inference() else t._version for t in tensors]


def _same(copies: list[Tensor], tensors: list[Tensor]) -> bool:
    """Whether a pass has left copies as they were; by value too, since NumPy and ``.data`` count no version."""
    return all(
        copy._version == 0
        and not tensor.is_inference()
        and tensor.layout == torch.strided
        and torch.equal(copy, tensor)
        for copy, tensor in zip(copies, tensors, strict=True)
    )
