"""Signals become KeyboardInterrupt, and none is lost; a second one ends the process at once."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

INTERRUPTED = 130
"""The exit code."""

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

_received = 0
_said = False
_depth = 0
_settled = False
_heard: list[signal.Signals] = []
_before_the_end: list[Callable[[], None]] = []


@contextmanager
def interrupting() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP interrupt what happens meanwhile.

    Not those that whoever started us has ignored (``nohup``), and not outside the main thread, which alone can say
    what a signal does. Inside another such body, this is a part of that one.
    """
    global _received, _said, _depth
    if _depth or threading.current_thread() is not threading.main_thread():
        yield
        return
    _received, _said, _depth = 0, False, 1
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    unraisable = sys.unraisablehook
    sys.unraisablehook = lambda ignored: _ignored(unraisable, ignored)
    try:
        _heard[:] = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
        _handle(_interrupt)
        yield
    finally:
        _depth = 0
        sys.unraisablehook = unraisable
        if not _settled:
            for number in _heard:
                signal.signal(number, before[number])
            _heard.clear()


def check() -> None:
    """Interrupt now if a signal came and its exception went unheard.

    Python ignores what is raised inside destructors and weak reference callbacks, and torch is full of both.
    """
    if _received:
        raise KeyboardInterrupt


def received() -> bool:
    """Has a signal come?"""
    return _received > 0


def before_the_end(tidy: Callable[[], None]) -> None:
    """Call this when signals end the process, at once or not."""
    if tidy not in _before_the_end:
        _before_the_end.append(tidy)


def say(more: str = "") -> None:
    """Tell the user, once; what comes after that ends the process at once."""
    global _said
    _handle(signal.SIG_IGN)  # a second signal, between the line and the note that it is written
    _tidy()
    if not _said:
        _said = True
        with suppress(OSError, ValueError):
            print(f"interrupted{more}", file=sys.stderr, flush=True)
    _handle(lambda *_: os._exit(INTERRUPTED))


def settle(code: int) -> None:
    """Let further signals end the process with this code, which is decided: only Python's own end is left."""
    global _settled
    _settled = True
    _handle(lambda *_: os._exit(code))


def no_handles() -> str:
    """What to say where the process may open no more files; empty where it may.

    Python then finds no modules either, and says that there are none of their names.
    """
    try:
        os.close(os.dup(2))
    except OSError as error:
        return f"the system refuses: {os.strerror(error.errno)}" if error.errno == errno.EMFILE else ""
    return ""


def _tidy() -> None:
    for tidy in _before_the_end:
        with suppress(Exception):
            tidy()


def _handle(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    for number in _heard:
        signal.signal(number, handler)


def _ignored(report: Callable[[sys.UnraisableHookArgs], object], ignored: sys.UnraisableHookArgs) -> None:
    """Leave out what :func:`check` makes up for."""
    if not issubclass(ignored.exc_type, KeyboardInterrupt):
        report(ignored)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _received
    _received += 1
    if _received == 1:
        raise KeyboardInterrupt
    _tidy()
    with suppress(OSError):
        if not _said:
            os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
