"""A check, what it is given, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, NoReturn, TypeVar

from prunekit.component import Component
from prunekit.plugins.host import PluginManager

C_co = TypeVar("C_co", bound=Component, covariant=True)


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        check: The promise, a sentence.
        status: ``ok``, ``fail``, or ``skip`` where the promise does not apply.
        detail: What was found, or why it does not apply.
    """

    check: str
    status: Literal["ok", "fail", "skip"]
    detail: str = ""


@dataclass(frozen=True)
class Subject(Generic[C_co]):
    """A component on the bench.

    Attributes:
        component: As the engine would build it.
        manager: Where losses, selectors and statistics are looked up.
    """

    component: C_co
    manager: PluginManager


class BrokenPromise(AssertionError):  # noqa: N818 (what it is, rather than what went wrong)
    """A component does not do what its kind promises."""


class NotApplicable(Exception):  # noqa: N818 (no error: the promise is about something that is not there)
    """A promise does not apply to this component, or cannot be checked here."""


def demand(kept: bool, broken: str) -> None:
    """Go on if a promise is kept.

    Raises:
        BrokenPromise: Saying ``broken``, if not.
    """
    if not kept:
        raise BrokenPromise(broken)


def not_applicable(why: str) -> NoReturn:
    """End a check that has nothing to check."""
    raise NotApplicable(why)


def sentence(check: Callable[..., None]) -> str:
    """The promise that a check is about: its name in words.

    Examples:
        >>> sentence(not_applicable)
        'not applicable'
    """
    return check.__name__.replace("_", " ")
