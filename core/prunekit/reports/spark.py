"""Numbers as a line of small bars."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"
_PLAIN = "_.,-=+*#"


def spark(values: Sequence[float | None], width: int = 40, encoding: str | None = "utf-8") -> str:
    """Bars from the lowest to the highest of some numbers, a blank where there is none.

    Args:
        values: More than ``width`` are thinned out; the first and the last stay.
        width: Bars, at most.
        encoding: Of the screen; one that has no bars gets plain signs.

    Examples:
        >>> spark([0.0, 1.0, None, 2.0])
        '▁▅ █'
    """
    if not values:
        return ""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    known = [v for v in values if v is not None and math.isfinite(v)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    bars = _BARS if _has_bars(encoding) else _PLAIN
    size = (high - low) or 1.0
    return "".join(
        bars[round((v - low) / size * (len(bars) - 1))] if v is not None and math.isfinite(v) else " "
        for v in values
    )


def _has_bars(encoding: str | None) -> bool:
    try:
        _BARS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
