"""A quadratic model of the loss over all weights, known by products with its curvature."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from prunekit_plugins._curvature.jacobian_factors import Factors
from prunekit_plugins._linalg.conjugate import solved


@dataclass(frozen=True)
class Quadratic:
    """The quadratic model.

    Attributes:
        factors: C.
        weights: θ, flat, float64.
        gradient: g, flat; zeros where it is left out.
        damping: α.
        moves: Whether kept weights are free, or stay at θ.
        tolerance: Of a fit: its residual, relative.
        iterations: Of a fit, at most.
    """

    factors: Factors
    weights: Tensor
    gradient: Tensor
    damping: float
    moves: bool
    tolerance: float
    iterations: int

    @cached_property
    def diagonal(self) -> Tensor:
        """Of C + αI."""
        return torch.cat([t.flatten() for t in self.factors.values()]) + self.damping

    @cached_property
    def wanted(self) -> Tensor:
        """(C + αI) θ − g: where the model has its minimum, (C + αI) w is that."""
        return self.factors.product(self.weights) + self.damping * self.weights - self.gradient

    def slope(self, values: Tensor) -> Tensor:
        """The model's gradient ∇Q at the given values of the weights."""
        change = values - self.weights
        return self.gradient + self.factors.product(change) + self.damping * change

    def height(self, values: Tensor) -> float:
        """The model's value Q at the given values of the weights."""
        change = values - self.weights
        curved = self.factors.curved(change) + self.damping * float(change @ change)
        return float(self.gradient @ change) + 0.5 * curved

    def change(self, values: Tensor) -> float:
        """``gᵀΔ + ½ ΔᵀCΔ`` from the weights to other values, without damping."""
        change = values - self.weights
        return float(self.gradient @ change) + 0.5 * self.factors.curved(change)

    def fitted(self, kept: Tensor, start: Tensor) -> Tensor:
        """The values with the smallest Q that are zero outside ``kept``."""
        if not self.moves:
            return self.weights * kept
        scale = torch.where(kept, self.diagonal, 1.0)
        values, _, _ = solved(
            lambda v: torch.where(kept, self.factors.product(v) + self.damping * v, 0.0),
            lambda v: v / scale,
            torch.where(kept, self.wanted, 0.0),
            self.tolerance,
            self.iterations,
            torch.where(kept, start, 0.0),
        )
        return values
