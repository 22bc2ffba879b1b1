"""First steps that several runs make from the same weights on the same examples: what is estimated there, once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from prunekit.component import Tensors
from prunekit.statistics.estimate import DEFAULT_MEMORY
from prunekit.statistics.request import Request, Statistic, mapped

Names = tuple[str, ...]


@dataclass
class First:
    """What has been estimated before a first step.

    Attributes:
        statistics: By request.
        state: Of the generator afterwards.
        loss: Before the step, once it is known.
        agreed: Whether all paths to the loss have been seen to agree.
    """

    statistics: Mapping[Request, Tensors]
    state: Tensor
    loss: float | None = None
    agreed: bool = False


class FirstSteps:
    """First steps from one network, by the names of what they estimate.

    Not by single statistics: numbers of one pass may differ in their last bits from those of one that estimates more.

    Args:
        room: Bytes of all statistics together; those that are larger are estimated again.
    """

    def __init__(self, room: int = DEFAULT_MEMORY) -> None:
        self._room = room
        self._known: dict[Names, First] = {}

    def find(self, requests: Iterable[Request]) -> First | None:
        """One that has estimated statistics of these names, maybe with other options."""
        return self._known.get(_names(requests))

    def keep(self, first: First) -> None:
        """Keep one, if there is room."""
        names, size = _names(first.statistics), _size(first.statistics)
        if names not in self._known and size <= self._room:
            self._room -= size
            self._known[names] = first


def _names(requests: Iterable[Request]) -> Names:
    return tuple(sorted(Statistic.of(request).name for request in requests))


def _size(statistics: Mapping[Request, Tensors]) -> int:
    """Bytes of all tensors, those once that lie over the same memory."""
    sizes: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return t

    for tensors in statistics.values():
        mapped(tensors, note)
    return sum(sizes.values())
