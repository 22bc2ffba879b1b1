"""What an error is, in words and in an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import typer

from prunekit_cli import signals
from prunekit_cli.streams import say

_NOT_NOW = ("ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "ENOMEM", "EFBIG", "EIO", "EAGAIN", "ESTALE")
_NOT_SO = ("ENAMETOOLONG", "EACCES", "EPERM", "EROFS", "ELOOP", "ENOTDIR", "EISDIR")
_CODES = {
    number: code
    for code, names in ((1, _NOT_NOW), (2, _NOT_SO))
    for name in names
    if (number := getattr(errno, name, None)) is not None
}


@runtime_checkable
class _Usage(Protocol):
    """A usage error of the parser, whichever click typer brings along."""

    exit_code: int

    def show(self) -> None: ...

    def format_message(self) -> str: ...


@contextmanager
def of_plugins() -> Iterator[None]:
    """Where plugins run: what would end a process in silence is an error there.

    Raises:
        RunError: In place of ``SystemExit``, of what the command line's parser takes for an exit, and of
            ``BrokenPipeError``, which elsewhere says that nobody reads our output.
    """
    try:
        yield
    except (SystemExit, typer.Exit, typer.Abort, BrokenPipeError) as error:
        from prunekit.errors import RunError

        raise RunError(f"{_place(error)}: {described(error)}") from error


def report(error: BaseException, silent: bool) -> int:
    """Say on standard error what happened.

    Args:
        error: Anything but an interruption.
        silent: Another process says it.

    Returns:
        2 for what the user can mend (usage, spec, data, file); 1 for what went wrong on the way, with a traceback
        where it is a bug.
    """
    if isinstance(error, _Usage):
        if not silent:
            error.show()
        return error.exit_code
    from prunekit.errors import PrunekitError, memory_is_full

    if isinstance(error, PrunekitError):
        if not silent:
            say(str(error))
        return error.exit_code
    if isinstance(error, OSError) and error.errno is not None and error.errno in _CODES:
        place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        say(f"{place}the system refuses: {os.strerror(error.errno)}")
        return _CODES[error.errno]
    if isinstance(error, ImportError) and (refused := signals.no_handles()):
        say(refused)
        return 1
    if memory_is_full(error):
        say(f"out of memory: {described(error)}")
        return 1
    say("".join(traceback.format_exception(error)).rstrip())
    print(
        "this is a bug in prunekit, or in a plugin that the lines above name; please report it, with those "
        "lines, to whoever wrote it",
        file=sys.stderr,
    )
    return 1


def described(error: BaseException) -> str:
    """An error's name and its text, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException) -> str:
    """The line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "a plugin"
