"""What was computed last, for the prediction and the update of one step, which ask for the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor

from prunekit import Detailed

Given = Sequence[Mapping[str, Tensor]]


class Remembering(Detailed):
    """A statistic that remembers one result made from it."""

    _last: tuple[Hashable, list[Tensor], dict[str, Tensor]] = (None, [], {})

    def remembered(
        self, who: Hashable, given: Given, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What was computed last, if by the same and from the same tensors; else compute it now.

        Args:
            who: The criterion with its options: several may use one statistic.
            given: What the result depends on.
            compute: Makes it.
        """
        known, tensors, found = self._last
        now = [t for table in given for t in table.values()]
        same = known == who and len(tensors) == len(now)
        if not same or not all(torch.equal(a, b) for a, b in zip(tensors, now, strict=True)):
            found = compute()
            self.remember(who, given, found)
        return found

    def remember(self, who: Hashable, given: Given, found: dict[str, Tensor]) -> None:
        """Keep what was computed from something, until the next."""
        self._last = who, [t.clone() for table in given for t in table.values()], found
