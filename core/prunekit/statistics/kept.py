"""Graphs of gradients, kept from one product with the Hessian to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Multiply: TypeAlias = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""A vector to a sum of products, both by parameter."""


@dataclass(frozen=True)
class Piece:
    """A slice of a batch.

    Attributes:
        multiply: By the Hessian of its total loss.
        normaliser: What the total is divided by.
    """

    multiply: Multiply
    normaliser: float


class Stamps:
    """Some things as they are now: which objects, and of tensors also where they lie and how often they were changed."""

    def __init__(self, things: Iterable[object]) -> None:
        # Objects, not their ids, which others may have once these are gone.
        self._stamps = [(thing, *_marks(thing)) for thing in things]

    def hold(self, things: Iterable[object]) -> bool:
        """Whether these are the same, and unchanged."""
        now = list(things)
        return len(now) == len(self._stamps) and all(
            new is old and _marks(new) == tuple(marks)
            for new, (old, *marks) in zip(now, self._stamps, strict=True)
        )


@dataclass
class _Batch:
    data: Stamps
    pieces: dict[int, Piece] = field(default_factory=dict)


class KeptGraphs:
    """The graphs of the first slices of some data, as many as there is room for.

    They are let go where the model's tensors are no longer those that they were made from. Examples that are read anew for
    every product may be others, and may come in another order; for such nothing is kept.

    Args:
        model: Whose parameters and buffers the graphs are made from.
        room: Bytes.
    """

    def __init__(self, model: nn.Module, room: int) -> None:
        self._model, self._room, self._left = model, room, room
        self._weights = Stamps(self._tensors())
        self._batches: dict[int, _Batch] = {}

    def check_weights(self) -> None:
        """Begin anew where the model's tensors have changed."""
        if not self._weights.hold(self._tensors()):
            self._batches, self._left = {}, self._room
            self._weights = Stamps(self._tensors())

    def batch(self, place: int, data: object) -> dict[int, Piece] | None:
        """What is kept of a batch, slices by number, to be added to with :meth:`fits`; ``None`` if nothing may be.

        Args:
            place: Which batch it is, in their order.
            data: Its inputs and targets.
        """
        if not self._room:
            return None
        leaves = tree_leaves(data)
        known = self._batches.setdefault(place, _Batch(Stamps(leaves)))
        if known.data.hold(leaves):
            return known.pieces
        self._batches, self._room = {}, 0
        return None

    def fits(self, size: int) -> bool:
        """Whether there is room for one more, of so many bytes, which is taken."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def _tensors(self) -> list[Tensor]:
        return [*self._model.parameters(), *self._model.buffers()]


def _marks(thing: object) -> tuple[int, ...]:
    if not isinstance(thing, Tensor) or thing.is_inference():
        return ()
    # An assignment to ``.data`` counts no version.
    return thing._version, thing.data_ptr() if thing.layout == torch.strided else 0
