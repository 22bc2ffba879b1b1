"""The ``prunable`` mapping of a spec."""

from __future__ import annotations

from prunekit.component import Options


class Prunable(Options):
    """Changes the set of prunable weights.

    Attributes:
        include: Name patterns (``*``, ``?``, ``[...]``); given, only parameters that match one are prunable,
            of whatever layer. Default: the weights of every Linear and Conv layer.
        exclude: Name patterns of parameters that are not prunable.
        biases: Count biases in.
        norms: Count the parameters of normalisation layers in.
    """

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    biases: bool = False
    norms: bool = False
