"""Files of strangers: what may be opened, and how much of it may be held.

A results file, a checkpoint or a data set is data. Whatever it says of itself, reading it opens no pipe and no device,
and takes no more memory than the file can account for.
"""

from __future__ import annotations

import gzip
import math
import os
import stat
import struct
import sys
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from prunekit.units import readable_bytes

_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, SyntaxError, tokenize.TokenError)
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

    Examples:
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


def damage_of_arrays(path: Path) -> str:
    """Why a ``.npz`` file cannot be read, found before any of its arrays takes memory; empty if nothing is wrong.

    Every array must be as large as its header says, and all together not larger than the file can account for.
    """
    if why := unreadable(path):
        return why
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            wrong = _too_large(path, sum(member.file_size for member in members))
            for member in (m for m in members if m.filename.endswith(".npy")):
                with archive.open(member) as file:
                    declared = _declared(file)
                if declared is not None and declared != member.file_size:
                    wrong = (
                        wrong
                        or f"{member.filename} has {member.file_size} bytes, and its header says {declared}"
                    )
    except (OSError, EOFError, ValueError, NotImplementedError, RuntimeError, *_DAMAGED) as error:
        return f"damaged or truncated: {error}"
    return wrong


def _declared(file: IO[bytes]) -> int | None:
    """How long an array's header says that its file is; ``None`` where it does not, as with objects."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        return None
    shape, _, dtype = readers[version](file)
    return None if dtype.hasobject else file.tell() + math.prod(shape) * dtype.itemsize


def read_declared(path: Path, head: int, size: int) -> bytes:
    """A file of just ``head + size`` bytes, ``.gz`` or not, where its head has said how many.

    Raises:
        OSError: If it has less or more, or these are more than a file of its size can account for.
    """
    if wrong := _too_large(path, head + size):
        raise OSError(wrong)
    found = read_start(path, head + size + 1)
    if len(found) != head + size:
        there = f"{len(found) - head}" if len(found) < head + size else f"more than {size}"
        raise OSError(f"holds {there} values but its header says {size}; truncated or damaged")
    return found


def _too_large(path: Path, size: int) -> str:
    """Why a file must not become so many bytes; empty if it may."""
    there = path.stat().st_size
    if size > inflated(there):
        return (
            f"has {readable_bytes(there)} and would become {readable_bytes(size)}, which looks like a trap; "
            "if it is not, store it less compressed"
        )
    return (
        ""
        if size <= memory()
        else f"takes {readable_bytes(size)}, which is more than the memory that is left"
    )


def damage_of_archive(path: Path) -> str:
    """What is wrong with a zip archive of stored members, as torch writes them; empty if all checksums agree.

    torch reads the members without a look at their checksums.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    return f"{member.filename} is compressed, which torch never does"
                if member.external_attr:  # what is marked as a folder torch reads as whatever the memory held
                    return f"{member.filename} is marked in a way that torch never writes"
            damaged = archive.testzip()
    except (OSError, EOFError, ValueError, NotImplementedError, RuntimeError, *_DAMAGED) as error:
        return str(error) or type(error).__name__
    return f"the checksum of {damaged} does not match" if damaged else ""
