"""Numbers as readers see them, on every screen and page alike."""

from __future__ import annotations


def number(value: float | None, digits: int = 4) -> str:
    """A loss or a change; ``–`` where there is none."""
    if value is None:
        return "–"
    readable = 10.0**-digits <= abs(value) < 1e7 or value == 0
    return f"{value:.{digits}f}" if readable else f"{value:.1e}"


def ordinal(count: int) -> str:
    """A place in a row.

    Example:
        >>> ordinal(3), ordinal(11), ordinal(22)
        ('3rd', '11th', '22nd')
    """
    special = {1: "st", 2: "nd", 3: "rd"} if count % 100 not in (11, 12, 13) else {}
    return f"{count}{special.get(count % 10, 'th')}"


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction as a percentage."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"
