"""The entry points of what is installed, and which of them cannot be read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions


@dataclass(frozen=True)
class Entry:
    """An entry point.

    Attributes:
        name: Its own; of one that cannot be read, the distribution's.
        module: What it names, ``module`` or ``module:object``.
        distribution: Whose it is; empty where that is not known.
        version: Of the distribution.
        load: Imports what it names; may raise anything.
        unreadable: What cannot be read of the distribution, in words; empty if all can.
    """

    name: str
    module: str
    distribution: str
    version: str
    load: Callable[[], object]
    unreadable: str = ""


def installed(group: str) -> list[Entry]:
    """The entry points of a group, in an order that does not depend on the path.

    A distribution with damaged files is passed by if it has nothing to do with the group. Else its entry points are
    there, and say what is wrong.
    """
    seen: set[str] = set()
    entries: list[Entry] = []
    for distribution in distributions():
        name, version, wrong = _described(distribution)
        # As for imports, the first on the path wins: what lies behind it is a copy, perhaps an old one.
        key = normal(name)
        if key and key in seen:
            continue
        seen.add(key)
        entries += _entries(distribution, group, name, version, wrong)
    return sorted(entries, key=lambda entry: (entry.distribution, entry.name, entry.module))


def normal(name: str) -> str:
    """A name as packaging tools compare it: ``prunekit_squared`` is ``prunekit-squared``."""
    return re.sub(r"[-_]+", "-", name).lower()


def _described(distribution: Distribution) -> tuple[str, str, str]:
    """Name, version, and what is wrong with the metadata."""
    try:
        metadata = distribution.metadata
        # Leftovers of an uninstalled distribution can lack both.
        name, version = (str(metadata[key]) if key in metadata else "" for key in ("Name", "Version"))
        return name, version, ""
    except Exception as error:  # what else packages can do to their files
        found = re.search(r"^Name: *(.+?)\s*$", _text(error), re.MULTILINE)
        return found[1] if found else "", "", f"has metadata that cannot be read: {_why(error)}"


def _entries(distribution: Distribution, group: str, name: str, version: str, wrong: str) -> list[Entry]:
    try:
        return [
            Entry(entry.name, entry.value, name, version, entry.load, wrong)
            for entry in distribution.entry_points
            if entry.group == group
        ]
    except Exception as error:
        try:
            text = distribution.read_text("entry_points.txt") or ""
        except Exception as unread:
            text = _text(unread)
        if group not in text:
            return []
        wrong = wrong or f"has entry points that cannot be read: {_why(error)}"
        return [Entry(name or group, "", name, version, _nothing, wrong)]


def _text(error: Exception) -> str:
    """The text that could not be decoded, as far as it is one; also of two bytes a letter."""
    return (
        error.object.replace(b"\0", b"").decode(errors="replace")
        if isinstance(error, UnicodeDecodeError)
        else ""
    )


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _nothing() -> object:
    raise LookupError("there is nothing to import")
