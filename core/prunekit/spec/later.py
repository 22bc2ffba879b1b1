"""Keys that came after the first release: where one says what runs did before, hashes are as if it were not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
_LATER_OF: Mapping[tuple[str, ...], Mapping[str, Any]] = {
    ("prune", "criterion", "magnitude"): {"update": False},
    ("prune", "criterion", "wanda"): {"swaps": 0, "n": None, "m": None},
}
"""The same for options of one component, by its place and name, where others have always had an option of that name."""


def without_later(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a spec's values without those that a run of the first release would not have had.

    Examples:
        >>> without_later({"evaluate": {"train_examples": 9, "every": 1}, "prune": None})
        {'evaluate': {'train_examples': 9}, 'prune': None}
    """
    copied = deepcopy(dict(values))
    for *place, key in _LATER:
        _leave_out(_at(copied, place), {key: _LATER[*place, key]})
    for *place, name in _LATER_OF:
        here = _at(copied, place)
        if isinstance(here, dict) and here.get("name") == name:
            _leave_out(here, _LATER_OF[*place, name])
    return copied


def _at(values: Any, place: Sequence[str]) -> Any:
    """What stands at a place; ``None`` if it is not there."""
    for key in place:
        values = (values or {}).get(key)
    return values


def _leave_out(here: Any, options: Mapping[str, Any]) -> None:
    for key, value in options.items():
        if isinstance(here, dict) and here.get(key, ...) == value:
            del here[key]
