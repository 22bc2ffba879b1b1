"""Tell by their first bytes which files prunekit has written, also where they are damaged further on."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from prunekit.results.format import FORMAT

STATE = "prunekit-state"
"""What stands near the beginning of a state."""

EXPORT = "prunekit export"
"""What stands near the beginning of exported weights and masks."""

_LOOKED_AT = 1 << 20
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"


def is_results(path: Path) -> bool:
    """Is this a regular file, and a results file or empty?"""
    return _begins(path, 0, _HDF5, FORMAT)


def is_state(path: Path) -> bool:
    """Is this a regular file, and the state of an unfinished run or empty?"""
    return _begins(path, 0, _ZIP, STATE)


def is_export(path: Path) -> bool:
    """Is this a regular file, and safetensors that prunekit has written or empty?"""
    return _begins(path, 8, b"{", EXPORT)  # behind the header's length


def _begins(path: Path, place: int, magic: bytes, word: str) -> bool:
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return False
    with open(os.open(path, flags), "rb") as file:
        start = file.read(_LOOKED_AT)
    return not start or (start.startswith(magic, place) and word.encode() in start)
