"""What an inverse will take, told before it is begun."""

from __future__ import annotations

from prunekit.units import readable_bytes

_SPEED = 2e10  # floating-point operations per second in factorisations: an order of magnitude, for a CPU
_WORTH = 1.0  # seconds below which nobody wants to know


def cost_notice(statistic: str, memory: float, operations: float) -> str | None:
    """Memory and time of a step at the first level, in words; ``None`` if it is over in no time.

    Args:
        statistic: Its name.
        memory: Bytes.
        operations: Floating-point operations of its inverses, without the passes over the data.
    """
    seconds = operations / _SPEED
    if seconds < _WORTH:
        return None
    return (
        f"{statistic}: some {readable_bytes(memory)} and {seconds:,.0f} s on a CPU for the inverses of all weights, "
        "less for later steps"
    )
