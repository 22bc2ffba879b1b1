"""Replace a file in one step: whoever looks finds the old one whole or the new one whole.

What is being written has a name that nobody can foresee, is made where nothing was, and is gone after any failure.
Only a killed process leaves it behind, for :func:`sweep`.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prunekit.errors import RunError
from prunekit.results import ours

_TOKEN = 8  # bytes
SUFFIX = len(".tmp") + 1 + 2 * _TOKEN
"""Bytes by which a temporary name is longer than the file's own."""

_live: set[Path] = set()  # what this process is writing


def put(temporary: Path, target: Path, wait: bool = False) -> None:
    """Give a file its name.

    Args:
        temporary: In the target's folder.
        target: Replaced if it is there.
        wait: Until content and name are on the disk.

    Raises:
        OSError: If the system refuses.
    """
    if wait:
        sync(temporary)
    os.replace(temporary, target)
    if wait:
        sync(target.parent)


@contextmanager
def replacing(target: Path, named: Callable[[Path, Path], None] = put) -> Iterator[Path]:
    """A new, empty file beside ``target``, which takes its name at the end.

    Args:
        target: Need not be there; if it is, its permissions are kept.
        named: Gives the file its name.

    Raises:
        OSError: If the system refuses.
    """
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(_TOKEN)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    _live.add(temporary)
    try:
        descriptor = os.open(temporary, flags, 0o666)
        try:
            with suppress(FileNotFoundError):
                _keep_mode(descriptor, os.stat(target))
        finally:
            os.close(descriptor)
        yield temporary
        named(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        _live.discard(temporary)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # not on this file system
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def sweep(*targets: Path) -> None:
    """Remove what killed processes were writing beside files that this one owns.

    Raises:
        RunError: If something else lies in the place where earlier versions wrote.
    """
    for target in targets:
        name = re.compile(re.escape(target.name) + rf"\.[0-9a-f]{{{2 * _TOKEN}}}\.tmp")
        with os.scandir(target.parent) as entries:
            found = [e.path for e in entries if name.fullmatch(e.name) and e.is_file(follow_symlinks=False)]
        for path in found:
            with suppress(OSError):
                os.unlink(path)
        former = target.with_name(target.name + ".tmp")
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(os.lstat(former).st_mode):
                raise RunError(f"{former}: is in the way: not a regular file")
            if ours.is_results(former) or ours.is_state(former):
                os.unlink(former)


def abandon() -> None:
    """Remove what is being written, from a process that is about to end at once."""
    for path in list(_live):
        with suppress(OSError):
            os.unlink(path)


def _keep_mode(descriptor: int, old: os.stat_result) -> None:
    """Whoever could not read the file that is replaced cannot read the new one."""
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
