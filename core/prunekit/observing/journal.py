"""Pieces of a long measurement that are done once, also if the run is stopped in the middle of it.

A probe measures in pieces: points of a grid, draws, iterations. Each piece that is done is noted; a run that goes on asks
the probe anew, from its beginning, and every piece that was noted is answered from the notes. What a piece draws is drawn
from a generator whose state is noted with it, so the end is bit for bit that of a run that nobody has stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict
from torch import Generator, Tensor
from torch.utils._pytree import tree_leaves, tree_map

T = TypeVar("T")

LARGE = 1 << 26
"""Bytes of a piece, beyond which it is not noted but done again: it would be written with every later one."""


@dataclass
class Note:
    """A piece that is done.

    Attributes:
        again: Whether it was too large, and is to be done again.
        value: What came of it; tensors on the CPU.
        generator: The state of what it drew from, afterwards.
        device: Where its tensors were.
    """

    __pydantic_config__: ClassVar = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    again: bool
    value: Any
    generator: Tensor | None
    device: str


class Journal:
    """The notes of one probe at one moment.

    Args:
        notes: Those of a run that was stopped, to be continued; ``None`` where none are kept.
        told: Called after each piece, noted before or not, with how many are done, and how many there will be, if known.
    """

    def __init__(
        self,
        notes: list[Note] | None = None,
        told: Callable[[int, int | None], None] = lambda done, total: None,
    ) -> None:
        self._notes = notes
        self._told = told
        self._done = 0
        self.total: int | None = None
        """How many pieces there will be, where the probe has said it."""

    def piece(self, compute: Callable[[], T], generator: Generator | None = None) -> T:
        """A piece, computed unless it is noted; see :meth:`prunekit.Moment.once`."""
        here, self._done = self._done, self._done + 1
        notes = self._notes
        noted = notes[here] if notes is not None and here < len(notes) else None
        if noted is not None and not noted.again:
            if generator is not None and noted.generator is not None:
                generator.set_state(noted.generator)
            answer: T = tree_map(lambda leaf: _handed_out(leaf, noted.device), noted.value)
        else:
            answer = compute()
            if notes is not None and noted is None:
                notes.append(_note(answer, generator))
        self._told(self._done, self.total)
        return answer


def _note(answer: object, generator: Generator | None) -> Note:
    tensors = [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)]
    again = sum(tensor.nbytes for tensor in tensors) > LARGE
    value = None if again else tree_map(_kept, answer)
    state = None if generator is None else generator.get_state()
    return Note(again, value, state, str(tensors[0].device) if tensors else "cpu")


def _kept(leaf: object) -> object:
    if isinstance(leaf, Tensor):
        return leaf.detach().to("cpu", copy=True)
    if leaf is None or isinstance(leaf, bool | int | float | str):
        return leaf
    raise TypeError(
        f"a piece of a probe is made of numbers, texts and tensors, in lists and mappings; found {type(leaf).__name__}"
    )


def _handed_out(leaf: object, device: str) -> object:
    return leaf.to(device, copy=True) if isinstance(leaf, Tensor) else leaf
