"""Packages that only some installations have."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from prunekit import SpecError


def extra(package: str, brought_by: str, where: str) -> Any:
    """A package that an extra brings.

    Args:
        package: To be imported.
        brought_by: The extra's name.
        where: What needs it, for the message.

    Raises:
        SpecError: Saying what to install.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package.partition(".")[0]:
            raise  # the package is there, and lacks something itself
        raise SpecError(
            f"{where}: the package {package} is not installed; pip install 'prunekit[{brought_by}]'"
        ) from None
