"""What every component promises, as checks that run with and without pytest.

``judge("criterion", MyCriterion())`` gives a verdict for each promise; ``prunekit check criterion:NAME`` prints them;
a subclass of :class:`CriterionContract`, or of the class of another kind, is a test for each. Names are resolved on
first use; only the contract classes need pytest.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
