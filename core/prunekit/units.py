"""Numbers of bytes, for readers."""

from __future__ import annotations

_UNITS = (("GiB", 2**30), ("MiB", 2**20))


def readable_bytes(size: float) -> str:
    """A number of bytes in words.

    Example:
        >>> readable_bytes(3 * 2**29), readable_bytes(2**27), readable_bytes(37 * 2**20), readable_bytes(512)
        ('1.5 GiB', '0.1 GiB', '37.0 MiB', '0.5 KiB')
    """
    for unit, bytes_ in _UNITS:
        if size >= bytes_ / 10:
            return f"{size / bytes_:,.1f} {unit}"
    return f"{size / 2**10:,.1f} KiB"


def memory_option(size: float) -> str:
    """The smallest round value of the option ``memory`` that gives at least so many bytes.

    Example:
        >>> memory_option(3 * 2**29), memory_option(36.5 * 2**20)
        ('2GiB', '37MiB')
    """
    unit, bytes_ = _UNITS[0] if size >= 2**30 else _UNITS[1]
    return f"{-int(-size // bytes_)}{unit}"
