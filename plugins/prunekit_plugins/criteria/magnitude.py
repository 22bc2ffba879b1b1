"""Magnitude pruning: the smallest weights go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit import Criterion, Options, Request
from prunekit_plugins.criteria._refit import Refit, moments, refit

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Statistics, Tensors


class MagnitudeOptions(Options):
    """Options.

    Attributes:
        update: New values for the survivors; not part of the method. ``true``: the least-squares solution at the layer's
            outputs for their mask. ``cg``: ten steps of conjugate gradients towards it, which is far faster.
    """

    update: Refit = False


class Magnitude(Criterion):
    """½θ²: isotropic curvature, no gradient (MP). Same ranking as |θ| for every λ.

    Models no loss, so it predicts no change. With ``update`` λ is damping of the layers' second moments.
    Reference: Laurent et al. (2020), section 3, with g = 0 and d = 1.
    """

    name = "magnitude"
    Options = MagnitudeOptions
    options: MagnitudeOptions

    @property
    def requires(self) -> frozenset[Request]:
        """Nothing, or the inputs' second moments for the update; with λ see :meth:`required`."""
        return self.required(0.0)

    def required(self, lam: float) -> frozenset[Request]:
        """The same with λ as damping of the moments."""
        update = self.options.update
        return frozenset({moments(lam, exact=update is True)}) if update else frozenset()

    @property
    def damps(self) -> bool:
        """λ is damping where survivors are adjusted."""
        return bool(self.options.update)

    def saliency(self, weights: Tensors, statistics: Statistics) -> dict[str, Tensor]:
        """Half the square of each weight, ½θ²."""
        return {k: w.square().mul_(0.5) for k, w in weights.items()}

    def update(self, weights: Tensors, statistics: Statistics, masks: Tensors) -> dict[str, Tensor] | None:
        """Values that make up for what is lost at each layer's outputs."""
        return refit(self.options.update, weights, statistics, masks)
