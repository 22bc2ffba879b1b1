"""Optimal Brain Apoptosis: how each weight acts together with all others in the curvature of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from prunekit import Criterion, Options, Request, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Tensors


class ApoptosisOptions(Options):
    """Options.

    Attributes:
        curvature: ``hessian``, as published; ``ggn``, the generalised Gauss-Newton matrix; ``empirical_fisher``, of the
            gradients of loss terms with the given labels.
    """

    curvature: Literal["hessian", "ggn", "empirical_fisher"] = "hessian"


class OptimalBrainApoptosis(Criterion):
    """|θ_i Σ_j H_ij θ_j|: a weight's whole row of the second-order term, across layers, where ``obd`` has H_ii θ_i² alone.

    The absolute value is taken of the sum over j and over all examples. There is no first-order term and no factor ½, and
    the λ term ½·λ·θ² is added after the absolute value.

    The sum over j goes over weights that stay, too. So the saliency says how much a weight takes part in the loss's
    curvature, and sums over some weights are not the change when these go: nothing is predicted. In a network of L layers
    with ReLU and without biases, Hθ is the GGN's product with θ and (L − 1) times the gradient.
    The authors' code also divides each layer's saliencies by their largest, and adds |θ|; neither is in the formula or here.
    The first version of that code holds the gradients at layers' outputs fixed, which leaves the loss's own curvature out;
    the later one (``fastOBA``) takes the whole product, as here.
    Reference: Sun, Fang, Wang, Jiang, Kong, Hu, Fang & Xu (2025), «Optimal Brain Apoptosis», arXiv 2502.17941.
    """

    name = "oba"
    Options = ApoptosisOptions
    options: ApoptosisOptions

    @property
    def requires(self) -> frozenset[Request]:
        """The product of the curvature with the weights."""
        return frozenset({self._product})

    @property
    def separable(self) -> bool:
        """No: weights of all layers act together."""
        return False

    @property
    def _product(self) -> Statistic:
        return Statistic("curvature_weights", curvature=self.options.curvature)

    def saliency(self, weights: Tensors, statistics: Mapping[Request, Tensors]) -> dict[str, Tensor]:
        """|θ ⊙ Hθ| per weight."""
        product = statistics[self._product]
        return {name: (w * product[name]).abs() for name, w in weights.items()}
