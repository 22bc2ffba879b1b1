"""Statistics of the loss at fixed weights."""

from prunekit import Estimator, hookimpl
from prunekit_plugins.statistics.ggn_diagonal import GGNDiagonal
from prunekit_plugins.statistics.gradient import Gradient
from prunekit_plugins.statistics.uniform import Uniform


@hookimpl
def prunekit_register_statistics() -> list[type[Estimator]]:
    """The built-in statistics."""
    return [Gradient, GGNDiagonal, Uniform]
