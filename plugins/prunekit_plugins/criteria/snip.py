"""Single-shot network pruning (SNIP): how sensitive the loss is to a factor on each weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prunekit import Criterion, Request

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Tensors


class SNIP(Criterion):
    """|g·θ| / Σ|g·θ|: how sensitive the loss is to a factor on each weight, as shares of the whole.

    The absolute gradient in a multiplicative mask at one. It is meant for one step at initialisation, and
    says nothing of the loss's change: nothing is predicted. Ranks as ``lm`` does while λ = 0. Published codes score in
    train mode, with the dropout and the batch statistics of the moment; here, as everywhere, it is eval mode. Without
    dropout and batch normalisation the two are the same.
    Reference: Lee, Ajanthan & Torr (2019).
    """

    name = "snip"
    requires = frozenset({"gradient"})

    @property
    def separable(self) -> bool:
        """No: saliencies are shares of the sum over all layers."""
        return False

    def saliency(self, weights: Tensors, statistics: Mapping[Request, Tensors]) -> dict[str, Tensor]:
        """|gθ| per weight, divided by their sum."""
        import torch

        gradient = statistics["gradient"]
        sensitivity = {k: (gradient[k] * w).abs() for k, w in weights.items()}
        total = float(sum(torch.stack([s.double().sum() for s in sensitivity.values()]).tolist()))
        return {k: s / total if total else s for k, s in sensitivity.items()}
