"""Packages that only some installations have."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from prunekit import SpecError


def extra(name: str) -> Any:
    """A package that the extra of its name brings.

    Raises:
        SpecError: Saying what to install.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise SpecError(
            f"executor {name}: the package is not installed; pip install 'prunekit[{name}]'"
        ) from None
