"""Synaptic flow (SynFlow): each weight's part in what flows through the network, without data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prunekit import Criterion, Request

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Tensors


class SynFlow(Criterion):
    """|∂R/∂|θ| ⊙ θ|, R the sum of the outputs with absolute weights for an input of ones, in float64.

    Every layer has the same total score where R is homogeneous in each (no biases or norms), so a layer with
    few weights left has large scores. That protects it over many steps, not in a single one: the authors take
    100 on the ``exponential`` schedule. Data and loss do not enter; nothing is predicted.
    Reference: Tanaka, Kunin, Yamins & Ganguli (2020), algorithm 1.
    """

    name = "synflow"
    requires = frozenset({"synaptic_flow"})

    @property
    def separable(self) -> bool:
        """No: what flows through a layer depends on all others."""
        return False

    def saliency(self, weights: Tensors, statistics: Mapping[Request, Tensors]) -> dict[str, Tensor]:
        """|∂R/∂|θ| θ| per weight."""
        slope = statistics["synaptic_flow"]
        return {k: (slope[k] * w).abs() for k, w in weights.items()}
