"""Files of strangers: what may be opened, and how much of it may be held.

A results file, a checkpoint or a data set is data. Whatever it says of itself, reading it opens no pipe and no device,
and takes no more memory than the file can account for.
"""

from __future__ import annotations

import gzip
import os
import stat
import sys
import zipfile
import zlib
from pathlib import Path

_INFLATED = 100
"""How many times its size a compressed file may take, where that is more than the next."""
_ALWAYS = 256 << 20
"""Bytes that a compressed file may take whatever its size."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def unreadable(path: Path) -> str:
    """Why a path cannot be read as a file, in words; empty if it is a regular file.

    Nothing is opened: opening a pipe would wait for its writer.

    Example:
        >>> unreadable(Path("/dev/null")), unreadable(Path("/nowhere"))
        ('is a device; only regular files are read', 'no such file')
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "no such file"
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if stat.S_ISREG(mode):
        return ""
    return f"is {_KINDS.get(stat.S_IFMT(mode), 'no file')}; only regular files are read"


def memory() -> int:
    """Bytes that this process can still take, as far as the system says."""
    limits = []
    try:
        with open("/proc/meminfo") as file:
            facts = dict(line.split(":", 1) for line in file)
        limits.append(int(facts["MemAvailable"].split()[0]) << 10)
    except (OSError, KeyError, ValueError):  # not Linux
        if hasattr(os, "sysconf"):
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=sys.maxsize)


def inflated(size: int) -> int:
    """How many bytes a compressed file of ``size`` bytes may become.

    Data compress by a factor of ten; a file that becomes a thousand times as large was made to fill a memory.
    """
    return max(_ALWAYS, _INFLATED * size)


def read_start(path: Path, size: int) -> bytes:
    """The first ``size`` bytes of a file, or all if there are fewer; of the content where its name ends in ``.gz``.

    Raises:
        OSError: If it cannot be read, or is not whole.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            found: bytes = file.read(size)
            return found
    except (EOFError, zlib.error) as error:
        raise OSError(f"damaged or truncated: {error}") from None


def damage_of_archive(path: Path) -> str:
    """What is wrong with a zip archive of stored members, as torch writes them; empty if all checksums agree.

    torch reads the members without a look at their checksums.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                return "a member is compressed, which torch never does"
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        return str(error) or type(error).__name__
    return f"the checksum of {damaged} does not agree" if damaged else ""
