"""Selectors: from saliencies to masks."""

from prunekit import Selector, hookimpl
from prunekit_plugins.selectors.global_ import Global
from prunekit_plugins.selectors.layerwise import Layerwise
from prunekit_plugins.selectors.nm import Pattern


@hookimpl
def prunekit_register_selectors() -> list[type[Selector]]:
    """The built-in selectors."""
    return [Global, Layerwise, Pattern]
