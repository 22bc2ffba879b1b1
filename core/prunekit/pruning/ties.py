"""Saliencies that are equal, so that a weight's position decides whether it stays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prunekit.errors import RunError
from prunekit.masks.select import comparable
from prunekit.masks.weights import read_together

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.masks.items import Items
    from prunekit.pruning.selector import Selector

_SHARE = 0.05  # of the weights that go: below, ties are no news
_PIECE = 1 << 18  # items


@dataclass(frozen=True)
class _Threshold:
    """What stands at the highest saliency that goes.

    Attributes:
        equal: Items of this saliency.
        gone: Of these, those that go.
        going: All that go.
        open: All there were.
        level: The saliency.
    """

    equal: int
    gone: int
    going: int
    open: int
    level: float

    @property
    def tied(self) -> int:
        """Items whose position has decided, or, if they are fewer, that it has spared."""
        return min(self.gone, self.equal - self.gone)


def ties(items: Items, kept: Tensor, selector: Selector) -> str | None:
    """How many of the weights that go had equals among those that stay, in words; ``None`` where that is few.

    Args:
        items: What was chosen among.
        kept: ``[n]``, what stays.
        selector: Which has chosen: among all, in each layer by itself, or in groups.

    Raises:
        RunError: If all have the same saliency.
    """
    import torch

    if kept.dtype != torch.bool or kept.shape != items.open.shape:
        return None  # which is refused where masks are checked
    grouped = _in_groups(items, kept, selector)
    if grouped is not None:
        return grouped
    parts = [layer.part for layer in items.layers] if selector.apart else [slice(None)]
    thresholds = [t for t in _thresholds(items, kept, parts) if t.going]
    tied = [t for t in thresholds if t.tied]
    if not tied:
        return None
    if all(t.equal == t.open for t in thresholds) and len(tied) == len(thresholds):
        weights, level = sum(t.open for t in tied), tied[0].level
        raise _undecided(f"the saliencies of all {weights} kept weights", f" ({level:g})")
    if sum(t.tied for t in tied) < _SHARE * sum(t.going for t in thresholds):
        return None
    most = max(tied, key=lambda t: t.tied)
    where = " of one layer" if selector.apart else ""
    return (
        f"{most.equal} weights{where} have the saliency {most.level:g}, and of these the first {most.gone} go, in order of "
        "position: the criterion does not tell them apart"
    )


def _undecided(what: str, level: str = "") -> RunError:
    return RunError(
        f"{what} are equal{level}, so nothing but their position would decide which go; take another criterion or other "
        "examples"
    )


def _thresholds(items: Items, kept: Tensor, parts: list[slice]) -> Iterator[_Threshold]:
    vectors = items.saliency, kept, items.open
    pieces = [[vector[part] for vector in vectors] for part in parts if len(items.saliency[part])]
    if items.saliency.is_cpu and kept.is_cpu:
        read = [number for piece in pieces for number in _counted(*piece)]
    else:
        read = read_together(number for piece in pieces for number in _counted_unseen(*piece))
    for start in range(0, len(read), 5):
        tied, gone, left, all_ = map(int, read[start : start + 4])
        yield _Threshold(tied, gone, left, all_, read[start + 4])


def _counted(values: Tensor, stays: Tensor, open_: Tensor) -> list[float]:
    """How many stand at the highest that goes, how many of these go, how many go, how many were there, and that value.

    By NumPy, and a piece that stays in the cache at a time.
    """
    vectors = comparable(values), open_.numpy() & ~stays.numpy(), open_.numpy()
    pieces = [[v[start : start + _PIECE] for v in vectors] for start in range(0, len(values), _PIECE)]
    highest, left, all_, equal, gone = -math.inf, 0, 0, 0, 0
    for value, going, were in pieces:
        some = value[np.flatnonzero(going)]
        highest = max(highest, float(some.max(initial=-np.inf)))
        left += len(some)
        all_ += int(np.count_nonzero(were))
    for value, going, _ in pieces:
        highest_too = value == highest
        equal += int(np.count_nonzero(highest_too))
        gone += int(np.count_nonzero(highest_too & going))
    return [equal, gone, left, all_, highest]


def _counted_unseen(values: Tensor, stays: Tensor, open_: Tensor) -> list[Tensor]:
    """The same without waiting for the device."""
    import torch

    going = open_ & ~stays
    highest = values.masked_fill(stays, -torch.inf).amax()  # the saliency is -inf where an item is gone
    equal = values == highest
    counts = (equal, equal & going, going, open_)
    return [*(mask.count_nonzero().double() for mask in counts), highest.double()]


def _in_groups(items: Items, kept: Tensor, selector: Selector) -> str | None:
    """The same of groups; empty where there are few ties, ``None`` where there are no groups."""
    import torch

    numbers: list[Tensor] = []
    for layer in items.layers:
        values, stays, open_ = (
            selector.in_groups(vector[layer.part], layer) for vector in (items.saliency, kept, items.open)
        )
        if values is None or stays is None or open_ is None:
            return None
        going = open_ & ~stays
        equal = values == values.masked_fill(~going, -torch.inf).amax(-1, keepdim=True)
        # Of a group, those of which position has decided, or, if they are fewer, that it has spared.
        tied = torch.minimum((equal & going).sum(-1), (equal & stays).sum(-1))
        flat = (tied > 0) & ((equal & open_).sum(-1) == open_.sum(-1))
        numbers += [count.sum().double() for count in (tied, tied > 0, going.any(-1), going, flat)]
    read = read_together(numbers)
    tied_, groups, of, left, alike = (int(sum(read[place::5])) for place in range(5))
    if groups and alike == of:
        raise _undecided("within each group the saliencies of all kept weights")
    if not tied_ or tied_ < _SHARE * left:
        return ""
    return (
        f"in {groups} of the {of} groups that lose weights, some that go and some that stay have the same saliency, and the "
        "first go, in order of position: the criterion does not tell them apart"
    )
