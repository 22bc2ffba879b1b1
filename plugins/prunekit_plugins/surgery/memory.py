"""What was computed last, for the prediction and the update of one step, which ask for the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from prunekit import Detailed


class Remembering(Detailed):
    """A statistic that remembers one result made from it."""

    _last: tuple[list[Tensor], dict[str, Tensor]] = ([], {})

    def remembered(
        self, given: Sequence[Mapping[str, Tensor]], compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What was computed last, if it was from the same tensors; else compute it now."""
        known, found = self._last
        now = [t for table in given for t in table.values()]
        if len(known) != len(now) or not all(torch.equal(a, b) for a, b in zip(known, now, strict=True)):
            found = compute()
            self.remember(given, found)
        return found

    def remember(self, given: Sequence[Mapping[str, Tensor]], found: dict[str, Tensor]) -> None:
        """Keep what was computed from something, until the next."""
        self._last = [t.clone() for table in given for t in table.values()], found
