"""Sparsity schedulers: the levels of a run."""

from prunekit import Scheduler, hookimpl
from prunekit_plugins.schedulers.cubic import Cubic
from prunekit_plugins.schedulers.explicit import Explicit
from prunekit_plugins.schedulers.exponential import Exponential
from prunekit_plugins.schedulers.linear import Linear
from prunekit_plugins.schedulers.one_shot import OneShot
from prunekit_plugins.schedulers.trust_region import TrustRegion


@hookimpl
def prunekit_register_schedulers() -> list[type[Scheduler]]:
    """Return the classes of the built-in schedulers, to be registered when plugins are loaded."""
    return [OneShot, Linear, Exponential, Cubic, Explicit, TrustRegion]
