"""Tensors that a plugin is lent. Torch counts what changes one in place, so looking after them costs no copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prunekit.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor


class Lent:
    """What a plugin is lent, and how often each tensor of it had been changed before.

    Args:
        things: What it is, in words (``weights``), to tensors, or mappings, sequences and statistics of them.
    """

    def __init__(self, things: Mapping[str, object]) -> None:
        named = [pair for name, thing in things.items() for pair in _tensors(name, thing)]
        # In inference mode nothing is counted, and nothing of ours is made there.
        self._named = [(name, t) for name, t in named if not t.is_inference()]
        self._versions = [t._version for _, t in self._named]

    @property
    def intact(self) -> bool:
        """Whether nothing has been changed."""
        return [t._version for _, t in self._named] == self._versions

    def check(self, who: str) -> None:
        """Refuse a plugin that has changed any of it.

        Raises:
            RunError: Naming the plugin, and what it has changed.
        """
        if not self.intact:
            raise changed(
                who, next(n for (n, t), v in zip(self._named, self._versions, strict=True) if t._version != v)
            )


def changed(who: str, what: str) -> RunError:
    """The error of a plugin that has changed what it is lent."""
    return RunError(
        f"{who} has changed in place something that it was only lent: {what}. Results computed from it would be wrong, "
        "so the run ends here; let it work on a copy (tensor.clone())"
    )


def _tensors(name: str, thing: object) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a thing, each with a name in words."""
    if hasattr(thing, "is_inference"):
        yield name, thing  # type: ignore[misc]
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            yield from _tensors(f"{name} of {key}", value)
        for key, value in getattr(thing, "__dict__", {}).items():  # a statistic with more beside its tensors
            yield from _tensors(f"{name} ({key})", value)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from _tensors(name, value)
    elif callable(mapped := getattr(thing, "map", None)):  # one that knows its tensors
        found: list[object] = []

        def noted(tensor: object) -> object:
            found.append(tensor)
            return tensor

        mapped(noted)
        yield from _tensors(name, found)
