"""A change of weights that is made bit by bit, and can be taken back all together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prunekit.masks.apply import zero
from prunekit.network.shelf import Shelf


class Change(Protocol):
    """Takes a step's new values and masks."""

    def make(self, name: str, value: Tensor | None, mask: Tensor) -> None:
        """Give a parameter new values, if there are any, and zeros where it is pruned."""
        ...

    def undo(self) -> None:
        """Put back what stood there."""
        ...


class Swapped:
    """A change of weights in place, with what stood there; the two can change places.

    Attributes:
        applied: Whether the change is in place.
    """

    def __init__(self, parameters: Mapping[str, Tensor], shelf: Shelf) -> None:
        self._parameters, self._shelf = parameters, shelf
        self._other: dict[str, Callable[[], Tensor]] = {}
        self.applied = True

    def make(self, name: str, value: Tensor | None, mask: Tensor) -> None:
        """Give a parameter new values, if there are any, and zeros where it is pruned."""
        p = self._parameters[name]
        if name not in self._other:
            self._other[name] = self._shelf.put(p.detach())
        with torch.no_grad():
            if value is not None:
                p.copy_(value)
        zero({name: p}, {name: ~mask})

    def apply(self) -> None:
        """Put the change in place."""
        if not self.applied:
            self._swap()

    def undo(self) -> None:
        """Put back what stood there, bit by bit."""
        if self.applied:
            self._swap()

    def _swap(self) -> None:
        with torch.no_grad():
            for name, other in self._other.items():
                p, value = self._parameters[name], other()
                self._other[name] = self._shelf.put(p.detach())
                p.copy_(value)
        self.applied = not self.applied

    def before(self) -> dict[str, Tensor]:
        """The parameters without the change, copies."""
        return self._copies(not self.applied)

    def after(self) -> dict[str, Tensor]:
        """The parameters with the change, copies."""
        return self._copies(self.applied)

    def _copies(self, here: bool) -> dict[str, Tensor]:
        return {
            name: p.detach().clone() if here or name not in self._other else self._other[name]()
            for name, p in self._parameters.items()
        }


@dataclass
class Swept:
    """What a pass over the blocks has done.

    Attributes:
        masks: After it.
        change: Its change of the weights, which is in place.
        predicted: The change of the loss that the criterion predicts; ``None`` if it models no loss.
        updated: Whether weights that stay have new values.
    """

    masks: MutableMapping[str, Tensor]
    change: Change
    predicted: float | None = None
    updated: bool = False
