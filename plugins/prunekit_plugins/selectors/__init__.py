"""Selectors: from saliencies to masks."""

from prunekit import Selector, hookimpl
from prunekit_plugins.selectors.global_ import Global
from prunekit_plugins.selectors.layerwise import Layerwise
from prunekit_plugins.selectors.nm import Pattern


@hookimpl
def prunekit_register_selectors() -> list[type[Selector]]:
    """Return the classes of the built-in selectors, to be registered when plugins are loaded."""
    return [Global, Layerwise, Pattern]
