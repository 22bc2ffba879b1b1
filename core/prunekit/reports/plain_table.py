"""A table of texts, for a screen, a page, a notebook or a paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PlainTable:
    """A table of texts.

    Attributes:
        title: Above it; may be empty.
        columns: Their titles.
        rows: Of as many texts.
        left: How many columns are text; the others are numbers.
        less: Titles of columns that may be missing where there is little room, the first to go first.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    less: Sequence[str] = ()
