"""Standard streams that may be closed, or whose reader may go away."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from typing import TextIO

from prunekit.visible import visible


def say(message: str) -> None:
    """Print a message to stderr, as it is but for what would act."""
    for line in visible(message).split("\n"):
        print(line, file=sys.stderr)


class Lasting(io.TextIOBase):
    """A stream that goes on in silence when its reader is gone: progress is no reason for a run to stop."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream."""
        return self._stream.encoding

    def write(self, text: str) -> int:
        """Write if somebody listens."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if somebody listens."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Of the stream."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Of the stream."""
        return self._stream.fileno()

    def writable(self) -> bool:
        """Always."""
        return True


@contextmanager
def lasting() -> Iterator[None]:
    """Have standard streams whatever happens to their other ends, and a standard error that never fails."""
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a λ must not end a run on a terminal that has none
            stream.reconfigure(errors="backslashreplace")
    with redirect_stderr(Lasting(sys.stderr)):
        yield


def open_standard_streams() -> None:
    """Give a process that has none (a daemon, ``>&-``) streams that lead nowhere, before a file takes their place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
