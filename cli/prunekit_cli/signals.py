"""Signals become KeyboardInterrupt, and none is lost."""

from __future__ import annotations

import signal
from typing import Any

_received = False


def install() -> None:
    """Let SIGINT and SIGTERM interrupt what follows, unless whoever started us has them ignored."""
    global _received
    _received = False
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def check() -> None:
    """Interrupt now if a signal came and its exception went unheard.

    Python ignores what is raised inside destructors and weak reference callbacks, and torch is full of both.
    """
    if _received:
        raise KeyboardInterrupt


def _interrupt(*_: Any) -> None:
    global _received
    _received = True
    raise KeyboardInterrupt
