"""Saliencies that are equal, so that a weight's position decides whether it stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunekit.errors import RunError
from prunekit.masks.weights import read_together

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.masks.items import Items
    from prunekit.pruning.selector import Selector

_SHARE = 0.05  # of the weights that go: below, ties are no news


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
        f"{most.equal} weights{where} have the saliency {most.level:g}, and of these the first {most.gone} go, in the order "
        "of their position: the criterion does not tell them apart"
    )


def _undecided(what: str, level: str = "") -> RunError:
    return RunError(
        f"{what} are equal{level}, so nothing but their position would decide which go; take another criterion or other "
        "examples"
    )


def _thresholds(items: Items, kept: Tensor, parts: list[slice]) -> Iterator[_Threshold]:
    import torch

    numbers: list[Tensor] = []
    for part in parts:
        values, stays, open_ = (  # the saliency is -inf where an item is gone
            torch.split(vector[part], _piece(vector)) for vector in (items.saliency, kept, items.open)
        )
        if not len(items.saliency[part]):
            continue
        pieces = list(zip(values, stays, open_, strict=True))
        highest = torch.stack([v.masked_fill(s, -torch.inf).amax() for v, s, _ in pieces]).amax()
        counts = torch.stack([_counts(v == highest, s, o) for v, s, o in pieces]).sum(0)
        numbers += [*counts.double(), highest.double()]
    read = read_together(numbers)
    for start in range(0, len(read), 5):
        tied, gone, left, all_ = map(int, read[start : start + 4])
        yield _Threshold(tied, gone, left, all_, read[start + 4])


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
        "first go, in the order of their position: the criterion does not tell them apart"
    )


def _counts(equal: Tensor, stays: Tensor, open_: Tensor) -> Tensor:
    """``[4]``: how many are equal, how many of these go, how many go, and how many were there."""
    import torch

    going = open_ & ~stays
    return torch.stack([mask.count_nonzero() for mask in (equal, equal & going, going, open_)])


def _piece(vector: Tensor) -> int:
    """Items that are looked at together: on a CPU as many as stay in its cache, without copies of long vectors."""
    return 1 << 18 if vector.device.type == "cpu" else max(1, len(vector))
