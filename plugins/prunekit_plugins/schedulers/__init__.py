"""Sparsity schedulers: the levels of a run."""

from prunekit import Scheduler, hookimpl
from prunekit_plugins.schedulers.cubic import Cubic
from prunekit_plugins.schedulers.explicit import Explicit
from prunekit_plugins.schedulers.exponential import Exponential
from prunekit_plugins.schedulers.linear import Linear
from prunekit_plugins.schedulers.one_shot import OneShot


@hookimpl
def prunekit_register_schedulers() -> list[type[Scheduler]]:
    """The built-in schedulers."""
    return [OneShot, Linear, Exponential, Cubic, Explicit]
