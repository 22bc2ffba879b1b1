"""Recorders: they store what happens in a run."""

from prunekit import Recorder, hookimpl
from prunekit_plugins.recorders.hdf5 import HDF5
from prunekit_plugins.recorders.jsonl import JSONLines
from prunekit_plugins.recorders.tensorboard import TensorBoard


@hookimpl
def prunekit_register_recorders() -> list[type[Recorder]]:
    """Return the classes of the built-in recorders, to be registered when plugins are loaded."""
    return [HDF5, JSONLines, TensorBoard]
