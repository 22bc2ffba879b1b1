"""Values that make up for what is lost at a layer's outputs, for criteria that choose masks without them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from prunekit import Request, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Statistics, Tensors
    from prunekit_plugins._curvature.grams import LayerGrams

Refit: TypeAlias = bool | Literal["cg"]
"""None; the least-squares solution; or ten steps of conjugate gradients towards it."""

_RIDGE = 0.01  # of conjugate gradients, in units of H's mean diagonal: as sparsegpt and alps have it


def moments(lam: float, exact: bool = False) -> Request:
    """The statistic that a refit needs, with λ as damping."""
    return Statistic("input_gram", damping=lam, precision="double" if exact else "auto")


def refit(how: Refit, weights: Tensors, statistics: Statistics, masks: Tensors) -> dict[str, Tensor] | None:
    """New values of the survivors.

    Args:
        how: Whether, and how far.
        weights: Before; zero where they were pruned already.
        statistics: With that of :func:`moments`.
        masks: What is kept.
    """
    from prunekit_plugins._selection.reconstruction import conjugate_gradients, least_squares

    if not how:
        return None
    grams = cast("LayerGrams", statistics["input_gram"])
    if how == "cg":
        return conjugate_gradients(grams, weights, weights, masks, _RIDGE)
    return least_squares(grams, weights, masks)
