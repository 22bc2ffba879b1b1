"""Criteria that probes compare: how options name them, and what pictures call them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Spoken = str | dict[str, Any]
"""A name, or a mapping with the spec's keys."""


def labels(criteria: Sequence[Spoken]) -> list[str]:
    """A short name for each, with its options.

    Raises:
        ValueError: If a mapping has no name, or two are the same.

    Examples:
        >>> labels(["qm", {"name": "qm", "lambda": 0.1}])
        ['qm', 'qm(lambda=0.1)']
    """
    found = [_label(criterion) for criterion in criteria]
    twice = sorted({label for label in found if found.count(label) > 1})
    if twice:
        raise ValueError(f"criteria: {', '.join(twice)} is listed twice")
    return found


def _label(criterion: Spoken) -> str:
    if isinstance(criterion, str):
        return criterion
    name = criterion.get("name")
    if not isinstance(name, str):
        raise ValueError(f"criteria: the mapping needs a name; found {criterion!r}")
    options = ", ".join(f"{key}={_short(value)}" for key, value in criterion.items() if key != "name")
    return f"{name}({options})" if options else name


def _short(value: object) -> object:
    return labels([dict(value)])[0] if isinstance(value, Mapping) and "name" in value else value
