"""Everything computed from the loss at fixed weights.

Every statistic of a layer contracts two things: what entered the layer (activations) and what came back
to its output (gradients of some output vectors). :mod:`~prunekit.estimation.capture` runs the network
once and collects the first, :class:`ForwardPass` sends vectors back for the second, and
:mod:`~prunekit.estimation.contraction` holds the products that combine them.

Names are resolved on first use, so that a plugin which subclasses :class:`SquaredColumns` can be listed
without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.estimation.capture import Geometry, Use
    from prunekit.estimation.estimate import Estimated
    from prunekit.estimation.problem import ForwardPass, Problem
    from prunekit.estimation.squares import SquaredColumns

__all__ = ["Estimated", "ForwardPass", "Geometry", "Problem", "SquaredColumns", "Use"]

_HOME = {
    "Estimated": "estimate",
    "ForwardPass": "problem",
    "Geometry": "capture",
    "Problem": "problem",
    "SquaredColumns": "squares",
    "Use": "capture",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
