"""Numbers of bytes and seconds, for readers and as they write them."""

from __future__ import annotations

import re

_UNITS = (("GiB", 2**30), ("MiB", 2**20))
_WRITTEN = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_MOST = 2**63


def bytes_of(text: str) -> int:
    """A number of bytes from text.

    Raises:
        ValueError: If it is none.

    Examples:
        >>> bytes_of("512MiB"), bytes_of("2 GB"), bytes_of("1048576")
        (536870912, 2000000000, 1048576)
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _WRITTEN:
        raise ValueError("must be a number of bytes, or one with a unit such as 512MiB or 2GiB")
    count = float(match[1]) * _WRITTEN[match[2].lower()]
    if count >= _MOST:
        raise ValueError("must be less than 2^63 bytes")
    return int(count)


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
