"""Saliencies that are equal, so that a weight's position decides whether it stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit.errors import RunError

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
    values, going = items.saliency, items.open & ~kept
    highest = values.masked_fill(~going, -torch.inf).amax()
    equal = (values == highest) & items.open
    numbers = torch.stack(
        [
            going.count_nonzero().double(),
            items.open.count_nonzero().double(),
            (equal & going).count_nonzero().double(),
            equal.count_nonzero().double(),
            highest.double(),
        ]
    ).tolist()
    gone, open_, gone_equal, all_equal = map(int, numbers[:4])
    if not gone or gone_equal == all_equal:
        return None
    if all_equal == open_:
        raise RunError(
            f"the saliencies of all {open_} kept weights are equal ({numbers[4]:g}), so nothing but their position "
            "would decide which go; take another criterion or other examples"
        )
    if min(gone_equal, all_equal - gone_equal) < _SHARE * gone:
        return None
    return (
        f"{all_equal} weights have the saliency {numbers[4]:g}, and of these the first {gone_equal} go, in the order "
        "of their position: the criterion does not tell them apart"
    )
