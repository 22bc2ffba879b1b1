"""Metrics beside loss and error."""

from prunekit import Metric, hookimpl
from prunekit_plugins.metrics.accuracy import Accuracy
from prunekit_plugins.metrics.f1 import F1
from prunekit_plugins.metrics.perplexity import Perplexity
from prunekit_plugins.metrics.top_k import TopK


@hookimpl
def prunekit_register_metrics() -> list[type[Metric]]:
    """Return the classes of the built-in metrics, to be registered when plugins are loaded."""
    return [Perplexity, Accuracy, F1, TopK]
