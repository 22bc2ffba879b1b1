"""Recorders."""

from prunekit import Recorder, hookimpl
from prunekit_plugins.recorders.hdf5 import HDF5


@hookimpl
def prunekit_register_recorders() -> list[type[Recorder]]:
    """The built-in recorders."""
    return [HDF5]
