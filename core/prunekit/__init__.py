"""Prune networks by a model of how their loss will change.

Names are resolved on first use, so ``import prunekit`` costs nothing and imports no torch. ``__init__.pyi`` lists them.
"""

import sys
from types import ModuleType

import lazy_loader

from prunekit.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


class _Package(ModuleType):
    """Importing ``prunekit.statistics``, the package, must not hide ``prunekit.statistics``, the function."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "statistics" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
