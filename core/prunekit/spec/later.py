"""Keys that came after the first release: where one says what runs did before, hashes are as if it were not there."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

_LATER: Mapping[tuple[str, ...], Any] = {
    ("evaluate", "every"): 1,
    ("evaluate", "metrics"): [],
    ("prune", "prunable", "preset"): None,
    ("prune", "criterion", "terms"): "token",
    ("prune", "sequential"): None,
}
"""Place to the value that changes nothing."""


def without_later(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a spec's values without those that a run of the first release would not have had.

    Example:
        >>> without_later({"evaluate": {"train_examples": 9, "every": 1}, "prune": None})
        {'evaluate': {'train_examples': 9}, 'prune': None}
    """
    copied = deepcopy(dict(values))
    for place, value in _LATER.items():
        here: Any = copied
        for key in place[:-1]:
            here = (here or {}).get(key)
        if isinstance(here, dict) and here.get(place[-1], ...) == value:
            del here[place[-1]]
    return copied
