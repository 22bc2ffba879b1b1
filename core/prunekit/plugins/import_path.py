"""Import an object by a path that a user wrote."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from pathlib import Path
from threading import RLock
from typing import Any

from prunekit.errors import SpecError

_PATH = RLock()


@contextmanager
def _here_on_path() -> Iterator[None]:
    """Find modules in the current folder too; one thread at a time, since the path is the process's."""
    here = str(Path.cwd())
    with _PATH:
        added = here not in sys.path
        if added:
            sys.path.insert(0, here)
        try:
            yield
        finally:
            if added:
                sys.path.remove(here)


def import_from(target: str, where: str) -> Any:
    """Import ``package.module:name``; modules in the current folder are found too.

    Raises:
        SpecError: If the module does not import or has no such name; ``where`` says which setting.
    """
    module_name, _, attribute = target.partition(":")
    try:
        with _here_on_path():
            imported: Any = import_module(module_name)
        for part in attribute.split("."):
            imported = getattr(imported, part)
    except (ImportError, AttributeError) as error:
        raise SpecError(f"{where}: {target!r} cannot be imported: {error}") from error
    if not callable(imported):
        raise SpecError(f"{where}: {target!r} is {type(imported).__name__}, and must be callable")
    return imported


def call_from(target: str, kwargs: Mapping[str, Any], where: str) -> Any:
    """Import a function by ``package.module:name`` and call it.

    Raises:
        SpecError: If it cannot be imported or does not take these arguments; ``where`` says whose it is.
    """
    function = import_from(target, f"{where}.factory")
    try:
        signature(function).bind(**kwargs)
    except ValueError:  # written in C, without a signature
        pass
    except TypeError as error:
        raise SpecError(f"{where}.kwargs: {target}: {error}") from None
    return function(**kwargs)
