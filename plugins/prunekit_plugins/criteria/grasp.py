"""Gradient signal preservation (GraSP): what a weight's removal does to the gradient's norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from prunekit import Criterion, Options, Request, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Tensors


class GraSPOptions(Options):
    """Options.

    Attributes:
        temperature: The logits are divided by it before the loss, as in the authors' code.
    """

    temperature: float = Field(default=200.0, gt=0)


class GraSP(Criterion):
    """θ ⊙ Hg, with its sign: those go whose removal raises the gradient's norm most, or lowers it least.

    The published score is −θ ⊙ Hg and the largest go. H and g are those of the mean loss over one and the
    same set; the authors' code takes them from different halves of a batch. It is meant for one step at
    initialisation, and says nothing of the loss's change: nothing is predicted. Published codes score in train mode,
    with the dropout and the batch statistics of the moment; here, as everywhere, it is eval mode. Without dropout and
    batch normalisation the two are the same.
    Reference: Wang, Zhang & Grosse (2020).
    """

    name = "grasp"
    Options = GraSPOptions

    @property
    def requires(self) -> frozenset[Request]:
        """Hg at the temperature."""
        return frozenset({self._product})

    @property
    def _product(self) -> Statistic:
        return Statistic("hessian_gradient", temperature=self.options.temperature)

    def saliency(self, weights: Tensors, statistics: Mapping[Request, Tensors]) -> dict[str, Tensor]:
        """θ ⊙ Hg: each weight times its entry of the Hessian's product with the gradient."""
        product = statistics[self._product]
        return {k: w * product[k] for k, w in weights.items()}
