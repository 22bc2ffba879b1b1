"""Executors: they start the workers of a sweep."""

from prunekit import Executor, hookimpl
from prunekit_plugins.executors.inline import Inline
from prunekit_plugins.executors.process import Process
from prunekit_plugins.executors.ray import Ray
from prunekit_plugins.executors.submitit import Submitit


@hookimpl
def prunekit_register_executors() -> list[type[Executor]]:
    """Return the classes of the built-in executors, to be registered when plugins are loaded."""
    return [Inline, Process, Ray, Submitit]
