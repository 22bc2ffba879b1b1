"""Loss-landscape probes."""

from prunekit import Probe, hookimpl
from prunekit_plugins.probes.line import Line


@hookimpl
def prunekit_register_probes() -> list[type[Probe]]:
    """The built-in probes."""
    return [Line]
