"""Which weights may be pruned, which of them go, and keeping zeros zero; public for authors of criteria and selectors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
