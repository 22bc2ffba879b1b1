"""Disk space that is sure to be there before something is written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

_BLOCK = 1 << 20

Extent = tuple[int, int]
"""Where something lies in a file: its first byte, and the one after its last."""


def reserve(file: IO[bytes], size: int) -> None:
    """Make an open file ``size`` bytes long, with room on the disk for all of them.

    A full disk is found at once. And ext4, which else allocates a file when it is renamed over another
    and waits for the disk to do that, has nothing left to wait for.

    Raises:
        OSError: If the disk is full.
    """
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except AttributeError:  # not on this system
        pass
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # not on this file system
            raise


def copy(source: Path, target: Path, room: int = 0, holes: Iterable[Extent] = ()) -> None:
    """Copy a file into one that is longer by ``room`` bytes, all of them sure to be there.

    Args:
        source: What is copied.
        target: Replaced if it is there.
        room: Bytes set aside behind the copy.
        holes: What need not be copied, since it is about to be overwritten; zeros stand there until then.

    Raises:
        OSError: If the disk is full.
    """
    block = memoryview(bytearray(_BLOCK))
    with source.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
        size = os.fstat(old.fileno()).st_size
        reserve(new, size + room)
        for start, stop in _between(holes, size):
            old.seek(start)
            new.seek(start)
            while start < stop:
                read = old.readinto(block[: stop - start])
                if not read:
                    raise OSError(errno.EIO, f"{source} got shorter while it was read")
                start += read
                rest = block[:read]
                while rest:
                    rest = rest[new.write(rest) :]
        if os.fstat(new.fileno()).st_size < size:  # nothing was reserved here, and the file ends in a hole
            new.truncate(size)


def _between(holes: Iterable[Extent], size: int) -> list[Extent]:
    """What lies between the holes of a file."""
    edges = [0, *(edge for hole in sorted(holes) for edge in hole), size]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
