"""What can go wrong, and what the command line makes of it.

Every error that a user can cause derives from :class:`PrunekitError` and from the builtin that it is.
The command line prints these without a traceback and exits with :attr:`PrunekitError.exit_code`;
anything else is our bug and keeps its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_FULL = re.compile(
    r"out of memory|can(no|')t allocate memory|bad_alloc|failed to map segment|can't start new thread"
    r"|storage size calculation overflowed",
    re.IGNORECASE,
)


class PrunekitError(Exception):
    """Base of all errors that prunekit raises on purpose."""

    exit_code = 2


class SpecError(PrunekitError, ValueError):
    """A spec, an option or an argument is not acceptable. Holds one line per problem."""

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class PluginError(PrunekitError, LookupError):
    """A plugin is missing, ambiguous or broken."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DataError(PrunekitError, ValueError):
    """A data set is missing, truncated, corrupt or does not fit the model."""


class CheckpointError(PrunekitError, ValueError):
    """A checkpoint cannot be read or does not fit the model."""


class DeviceError(PrunekitError, RuntimeError):
    """The requested device does not exist, or things that belong together are on several devices."""


class ResultsError(PrunekitError, OSError):
    """A results file cannot be read, written or resumed."""


class UnsupportedError(PrunekitError, NotImplementedError):
    """A statistic cannot be computed for this model; names the parameter or module."""


class RunError(PrunekitError, RuntimeError):
    """The run itself failed: a loss or a saliency that is not finite, a full disk, a full memory."""

    exit_code = 1


class PrunekitWarning(UserWarning):
    """A setting has no effect, or something is likely not what was meant."""


def memory_is_full(error: BaseException | None) -> bool:
    """Is this what went wrong, or what that came of? Libraries say it in many ways and at many places."""
    for origin in _origins(error):
        texts = [str(origin), *getattr(origin, "__notes__", ())]
        if isinstance(origin, MemoryError) or any(map(_FULL.search, texts)):
            return True
    return False


def was_interrupted(error: BaseException | None) -> bool:
    """Is this an interruption, or what one became on its way through compiled code?

    A signal that arrives inside h5py's lock, say, comes out as a ``SystemError`` with the interruption as its cause.
    """
    return any(isinstance(origin, KeyboardInterrupt) for origin in _origins(error))


def pass_interruption(error: Exception) -> None:
    """Raise the interruption that an error hides, where any other error is about to get another name.

    Raises:
        KeyboardInterrupt: If :func:`was_interrupted`.
    """
    if was_interrupted(error):
        raise KeyboardInterrupt from error


def _origins(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
