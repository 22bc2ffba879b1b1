"""Loss-landscape probes: they measure the loss around a network at moments of a run."""

from prunekit import Probe, hookimpl
from prunekit_plugins.probes.certificate import Certificate
from prunekit_plugins.probes.error_budget import ErrorBudget
from prunekit_plugins.probes.fresh import Fresh
from prunekit_plugins.probes.gradient import Gradient
from prunekit_plugins.probes.layers import Layers
from prunekit_plugins.probes.line import Line
from prunekit_plugins.probes.oracle import Oracle
from prunekit_plugins.probes.plane import Plane
from prunekit_plugins.probes.radius import Radius
from prunekit_plugins.probes.spectrum import Spectrum
from prunekit_plugins.probes.stability import Stability


@hookimpl
def prunekit_register_probes() -> list[type[Probe]]:
    """Return the classes of the built-in probes, to be registered when plugins are loaded."""
    return [
        Certificate,
        ErrorBudget,
        Fresh,
        Gradient,
        Layers,
        Line,
        Oracle,
        Plane,
        Radius,
        Spectrum,
        Stability,
    ]
