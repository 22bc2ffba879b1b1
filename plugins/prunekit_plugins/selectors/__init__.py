"""Selectors: from saliencies to masks."""

from prunekit import Selector, hookimpl
from prunekit_plugins.selectors.global_ import Global
from prunekit_plugins.selectors.layerwise import Layerwise


@hookimpl
def prunekit_register_selectors() -> list[type[Selector]]:
    """The built-in selectors."""
    return [Global, Layerwise]
