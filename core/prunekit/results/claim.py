"""One writer: who writes an output owns it, by a lock beside it, until it is done or dead.

The lock is a file of its own, since the output is replaced at every change. The kernel holds it for as long as the
process lives. Where a file system has no locks, or has them for one machine only, the lock's time of change tells:
its owner renews it, and whoever finds it unchanged for :data:`STALE` seconds takes over. The owner that was thought
dead then finds another's token there and writes no more.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from prunekit.errors import ResultsError, RunError
from prunekit.results.replacing import put, sync

BEAT = 10.0
"""Seconds between two signs of life."""

STALE = 60.0
"""Seconds without one after which an owner on another machine is taken for dead."""

_SYNC = 1.0  # seconds between two waits for the disk
_PATIENCE = 0.5  # seconds for one who has looked, and is about to give it up, to do so
_SETTLE = 0.2  # seconds in which two who take an unlocked file over at once overwrite each other
_FORMAT = b'{"prunekit-lock": 1, '
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_held: dict[str, Claim] = {}


class Claim:
    """An output that this process owns. :func:`claimed` makes and ends it.

    Attributes:
        output: The file that is owned.
        lock: The file that says so.
    """

    def __init__(self, output: Path, descriptor: int, record: bytes) -> None:
        self.output, self.lock = output, lock_path(output)
        self.descriptor = descriptor
        self._record = record
        self._synced = -math.inf  # when the disk was last waited for
        self._boundary: set[Path] = set()  # what has been waited for since
        self._waiting: set[Path] = set()  # what has not
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, name=f"owner of {output.name}", daemon=True)

    def check(self) -> None:
        """Make sure that the output is still this process's.

        Raises:
            RunError: If another has taken it over, or the lock is gone.
        """
        try:
            found = self.lock.read_bytes()
        except OSError:
            found = b""
        if found != self._record:
            what = f"{_described(found)} has taken it over" if found else f"its lock {self.lock} is gone"
            raise RunError(
                f"{self.output}: {what}, so this run stops writing; what was finished before is kept"
            )

    def put(self, temporary: Path, target: Path, wait: bool = False) -> None:
        """Give a finished file its name, if the output is still this process's.

        Waits for the disk when the last wait is a second ago, and then for every file of that boundary; else what
        is left out is made up for within a second.

        Args:
            temporary: The file, in the folder of its target.
            target: The output, or what lies beside it.
            wait: For the disk, in any case.

        Raises:
            RunError: If another has taken it over.
            OSError: If the system refuses.
        """
        self.check()
        if time.monotonic() - self._synced >= _SYNC:
            self._boundary.clear()
            # A state must not be on the disk long before the results that it goes on from.
            self._catch_up(target)
            self._synced = time.monotonic()
        due = wait or target not in self._boundary
        put(temporary, target, wait=due)
        if due:
            self._boundary.add(target)
            self._waiting.discard(target)
        else:
            self._waiting.add(target)

    def begin(self) -> None:
        """Show signs of life."""
        self._beating.start()

    def end(self) -> None:
        """Give the output up: all that was written of it is on the disk, and the lock goes."""
        self._over.set()
        if self._beating.is_alive():
            self._beating.join()
        self._catch_up()
        with suppress(OSError):
            if self.lock.read_bytes() == self._record:
                os.unlink(self.lock)

    def forget(self) -> None:
        """Close the lock, in a forked process too: the kernel holds it for as long as anyone has it open."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _beat(self) -> None:
        shown = time.monotonic()
        while not self._over.wait(_SYNC):
            if self._waiting and time.monotonic() - self._synced >= _SYNC:
                self._synced = time.monotonic()
                self._catch_up()
            if time.monotonic() - shown >= BEAT:
                shown = time.monotonic()
                with suppress(OSError):
                    os.utime(self.descriptor)

    def _catch_up(self, but: Path | None = None) -> None:
        """Wait for what has not been waited for, but for a file that is about to be replaced."""
        for target in self._waiting - {but}:
            self._waiting.discard(target)
            with suppress(OSError):
                sync(target)


def lock_path(output: Path) -> Path:
    """Where the lock of an output lies."""
    return output.with_name(output.name + ".lock")


def current(output: Path) -> Claim | None:
    """The claim that this process has on an output, if it has one."""
    return _held.get(os.path.abspath(output))


def written(output: Path) -> bool:
    """Whether somebody owns an output now, this process or another; takes nothing from anybody."""
    lock = lock_path(output)
    try:
        descriptor = os.open(lock, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not (found := _content(descriptor)).startswith(_FORMAT):
            return False
        kernel = _locked(descriptor)  # until it is closed, at once: who wants to own it waits for so long
        if kernel and _field(found, "host") == socket.gethostname():
            return False
        return time.time() - status.st_mtime < STALE
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def naming(output: Path, wait: bool = False) -> Callable[[Path, Path], None]:
    """What gives a finished file its name: :meth:`Claim.put` of the output's claim, or without one plain renaming.

    Args:
        output: Which the file is, or lies beside.
        wait: For the disk.
    """
    claim = current(output)
    return partial(claim.put if claim else put, wait=wait)


@contextmanager
def claimed(output: Path) -> Iterator[Claim]:
    """Own an output meanwhile.

    Args:
        output: Need not be there; its folder must.

    Raises:
        ResultsError: If another process or another thread of this one owns it, saying who and since when, or if
            the lock cannot be had.
    """
    claim = _taken(output)
    key = os.path.abspath(output)
    _held[key] = claim
    try:
        claim.begin()
        yield claim
    finally:
        try:
            claim.end()
        finally:
            claim.forget()
            del _held[key]


def _taken(output: Path) -> Claim:
    lock = lock_path(output)
    try:
        descriptor, kernel = _opened(output, lock)
    except OSError as error:
        if isinstance(error, ResultsError):
            raise
        raise ResultsError(f"{lock}: cannot be acquired: {error.strerror}") from None
    try:
        found = _content(descriptor)
        if found and not found.startswith(_FORMAT):
            raise ResultsError(
                f"{lock}: is not a lock that prunekit wrote, and the run needs this name; choose another output"
            )
        # Half a record is of an owner that was killed at its first word.
        if found and (not kernel or _field(found, "host") not in (None, socket.gethostname())):
            age = _now(lock.parent) - os.fstat(descriptor).st_mtime
            if age < STALE:
                raise _owned(
                    output,
                    found,
                    f"It was alive {max(0, age):.0f} s ago; after {STALE:.0f} s it counts as dead.",
                )
        record = _record()
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, record)
        os.ftruncate(descriptor, len(record))
        if not kernel:
            time.sleep(_SETTLE)
            if (found := lock.read_bytes()) != record:
                raise _owned(output, found)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError) and not isinstance(error, ResultsError):
            raise ResultsError(f"{lock}: cannot be written: {error.strerror}") from None
        raise
    return Claim(output, descriptor, record)


def _opened(output: Path, lock: Path) -> tuple[int, bool]:
    """The lock file, and whether the kernel holds it for this process."""
    patience = time.monotonic() + _PATIENCE
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    while True:
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(os.lstat(lock).st_mode):
                raise ResultsError(
                    f"{lock}: is not a regular file, and the run needs this name; choose another output"
                )
        descriptor = os.open(lock, flags, 0o666)
        try:
            kernel = _locked(descriptor)
            with suppress(FileNotFoundError):
                # Between the opening and the locking the owner before may have removed it.
                if os.path.samestat(os.fstat(descriptor), os.lstat(lock)):
                    return descriptor, kernel
        except BlockingIOError:
            found = _content(descriptor)
            os.close(descriptor)
            if time.monotonic() >= patience:
                raise _owned(output, found) from None
            time.sleep(0.02)
            continue
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Let the kernel hold it, if this system and its file system can."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            return False
        raise
    return True


def _content(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 4096)


def _record() -> bytes:
    fields = {
        "token": secrets.token_hex(16),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return _FORMAT + json.dumps(fields)[1:].encode()


def _field(record: bytes, name: str) -> str | None:
    """What a lock says; half of one says nothing."""
    try:
        return str(json.loads(record)[name])
    except (ValueError, KeyError):
        return None


def _described(record: bytes) -> str:
    process, host, since = (_field(record, name) for name in ("process", "host", "since"))
    return f"process {process} on {host}, since {since}," if process and host and since else "another process"


def _owned(output: Path, record: bytes, more: str = "") -> ResultsError:
    return ResultsError(
        f"{output}: {_described(record)} is writing it (according to {lock_path(output).name}); wait until it has ended, "
        f"or choose another output. {more}".rstrip()
    )


def _now(folder: Path) -> float:
    """The file system's time, which on another machine need not be this one's."""
    path = folder / f".prunekit-{secrets.token_hex(8)}"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
        os.unlink(path)


def _after_fork() -> None:
    for claim in _held.values():
        claim.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
