"""Everything computed from the loss at fixed weights.

Every statistic of a layer contracts two things: what entered the layer (activations) and what came back
to its output (gradients of some output vectors). :mod:`~prunekit.estimation.capture` runs the network
once and collects the first, :class:`ForwardPass` sends vectors back for the second, and
:mod:`~prunekit.estimation.contraction` holds the products that combine them.
"""

from prunekit.estimation.capture import Geometry, Use
from prunekit.estimation.estimate import Estimated, estimate
from prunekit.estimation.problem import ForwardPass, Problem
from prunekit.estimation.squares import SquaredColumns

__all__ = ["Estimated", "ForwardPass", "Geometry", "Problem", "SquaredColumns", "Use", "estimate"]
