"""Saliencies that are equal, so that a weight's position decides whether it stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit.errors import RunError
from prunekit.masks.weights import read_together

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.masks.items import Items

_SHARE = 0.05  # of the weights that go: below, ties are no news


def ties(items: Items, kept: Tensor) -> str | None:
    """How many of the weights that go had equals among those that stay, in words; ``None`` where that is few.

    Args:
        items: What was chosen among.
        kept: ``[n]``, what stays.

    Raises:
        RunError: If all have the same saliency.
    """
    import torch

    if kept.dtype != torch.bool or kept.shape != items.open.shape:
        return None  # which is refused where masks are checked
    values = items.saliency  # -inf where an item is gone
    highest = values.masked_fill(kept, -torch.inf).amax()
    equal = values == highest
    going = items.open & ~kept
    counts = [mask.count_nonzero() for mask in (equal, equal & going, going, items.open)]
    *numbers, level = read_together(number.double() for number in (*counts, highest))
    all_equal, gone_equal, gone, open_ = map(int, numbers)
    if not gone or gone_equal == all_equal:
        return None
    if all_equal == open_:
        raise RunError(
            f"the saliencies of all {open_} kept weights are equal ({level:g}), so nothing but their position "
            "would decide which go; take another criterion or other examples"
        )
    if min(gone_equal, all_equal - gone_equal) < _SHARE * gone:
        return None
    return (
        f"{all_equal} weights have the saliency {level:g}, and of these the first {gone_equal} go, in the order "
        "of their position: the criterion does not tell them apart"
    )
