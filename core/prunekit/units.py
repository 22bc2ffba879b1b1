"""Numbers of bytes and seconds, for readers."""

from __future__ import annotations

_UNITS = (("GiB", 2**30), ("MiB", 2**20))


def readable_bytes(size: float) -> str:
    """A number of bytes in words.

    Examples:
        >>> readable_bytes(3 * 2**29), readable_bytes(2**27), readable_bytes(37 * 2**20), readable_bytes(512)
        ('1.5 GiB', '0.1 GiB', '37.0 MiB', '0.5 KiB')
    """
    for unit, bytes_ in _UNITS:
        if size >= bytes_ / 10:
            return f"{size / bytes_:,.1f} {unit}"
    return f"{size / 2**10:,.1f} KiB"


def duration(seconds: float) -> str:
    """A time in words.

    Examples:
        >>> duration(0.4), duration(75), duration(600), duration(9000), duration(400_000)
        ('0 s', '75 s', '10 min', '2.5 h', '4.6 days')
    """
    for unit, length, digits in (("days", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def memory_option(size: float) -> str:
    """The smallest round value of the option ``memory`` that gives at least so many bytes.

    Examples:
        >>> memory_option(3 * 2**29), memory_option(36.5 * 2**20)
        ('2GiB', '37MiB')
    """
    unit, bytes_ = _UNITS[0] if size >= 2**30 else _UNITS[1]
    return f"{-int(-size // bytes_)}{unit}"
