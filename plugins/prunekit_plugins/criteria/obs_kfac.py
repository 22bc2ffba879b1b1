"""Optimal Brain Surgeon with Kronecker-factored curvature."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from prunekit import RunError
from prunekit.masks import FlatIndex
from prunekit_plugins._curvature.options import OuterProducts
from prunekit_plugins.criteria._surgeon import BlockSurgeonOptions, Surgeon

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Statistics, Tensors
    from prunekit_plugins._curvature.blocks import Chunk
    from prunekit_plugins._curvature.kronecker import Kronecker

_MANY, _ROUGH = 1 << 19, 1e-4
"""Layers of as many weights, that are not double, are solved in single precision, to this relative residual."""
_TOLERANCE = 1e-10
_MOST_PRODUCTS = 10_000


class KroneckerSurgeonOptions(BlockSurgeonOptions):
    """Options.

    Attributes:
        curvature: ``ggn``, exact over classes; ``ggn_mc``, from labels that the model draws; ``auto``, the former where it
            takes at most 256 passes per example, else the latter; ``empirical_fisher``.
            The Hessian has no Kronecker factors.
    """

    curvature: OuterProducts = "ggn"


class KroneckerSurgeon(Surgeon):
    """``obs`` with H = A ⊗ G + αI in each layer: inputs and units coupled, at the price of two small matrices.

    For layers of up to a few thousand inputs and outputs. Selection is unit by unit, from the statistic
    ``inverse_kfac``: a weight's cost counts on every weight of other units to make up for it, pruned or not. The update
    is of the whole layer: the exact minimum of the quadratic model (with the gradient, if asked for) over all kept
    weights together, the pruned ones at zero, by conjugate gradients to a relative residual of 1e-10; so is the Newton
    step that selection starts from with ``gradient: true``. A system on which they fail is an error.
    References: Martens & Grosse (2015); for pruning, Wang, Grosse, Fidler & Zhang (2019).
    """

    name = "obs_kfac"
    statistic = "inverse_kfac"
    Options = KroneckerSurgeonOptions

    def _minimum(self, weights: Tensors, statistics: Statistics) -> Callable[[Chunk], Tensor]:
        """Of the whole layer's model: what a unit does when the others are free to move has its minimum there too."""
        if not self.first_order:
            return super()._minimum(weights, statistics)
        import torch

        index = FlatIndex.of(weights)
        kept = torch.zeros_like(index.flat(weights), dtype=torch.bool)
        for family in self._blocks(statistics).families:
            kept[family.index[family.there]] = True
        values = self._whole(weights, statistics, kept)
        return lambda chunk: chunk.at(values)

    def _adjusted(self, weights: Tensors, statistics: Statistics, masks: Tensors) -> dict[str, Tensor]:
        """Layer by layer, each as a whole."""
        index = FlatIndex.of(weights)
        everything = self._whole(weights, statistics, index.flat(masks))
        return {name: v.to(weights[name].dtype) for name, v in index.split(everything).items()}

    def _whole(self, weights: Tensors, statistics: Statistics, left: Tensor) -> Tensor:
        import torch

        index = FlatIndex.of(weights)
        everything = index.flat(weights, torch.float64)
        gradient = index.flat(statistics["gradient"], torch.float64) if self.first_order else None
        for family in cast("list[Kronecker]", self._blocks(statistics).families):
            places = family.positions
            slope = None if gradient is None else gradient[places]
            single = places.numel() >= _MANY and weights[family.layer or ""].dtype == torch.float32
            solve = _in_single if single else _minimised
            everything[places] = solve(family, everything[places], left[places], slope)
        return everything


def _in_single(family: Kronecker, weights: Tensor, left: Tensor, gradient: Tensor | None) -> Tensor:
    """The same in single precision: of a large layer half the time, and fewer products."""
    import torch

    rounded = cast(
        "Kronecker",
        family.map(lambda t: t.float() if isinstance(t, torch.Tensor) and t.is_floating_point() else t),
    )
    slope = None if gradient is None else gradient.float()
    return _minimised(rounded, weights.float(), left, slope, _ROUGH).to(weights.dtype)


def _minimised(
    family: Kronecker, weights: Tensor, left: Tensor, gradient: Tensor | None, tolerance: float = _TOLERANCE
) -> Tensor:
    """``argmin_w ½ΔᵀHΔ + gᵀΔ``, Δ = w − θ, with w zero except at what is left.

    Args:
        family: The layer.
        weights: θ ``[groups, units, inputs]``, zero where pruned before.
        left: Of the same shape.
        gradient: g of the same shape.
        tolerance: Of the residual, relative to the right-hand side.
    """
    from prunekit_plugins._linalg.conjugate import solved

    free = left.to(weights.dtype)
    dense = 2 * int(left.sum()) > left.numel()
    # Of Δ, the part at pruned weights is −θ: what is left has to balance it.
    wanted = family.product(weights * (1 - free))
    wanted = (wanted if gradient is None else wanted - gradient) * free
    diagonal = family.diagonal()

    def precondition(values: Tensor) -> Tensor:
        # Measured: beyond half of the weights the inverse needs up to five times fewer products, below it no fewer
        # than the diagonal, and each costs three times as much.
        if dense:
            return family.inverse_product(values).mul_(free)
        return values / diagonal

    change, residual, products = solved(
        lambda values: family.product(values).mul_(free), precondition, wanted, tolerance, _MOST_PRODUCTS
    )
    if not residual <= tolerance:
        raise RunError(
            f"obs_kfac: conjugate gradients for {family.layer} did not converge: they reached a relative residual of "
            f"{residual:.1e} after {products:,} products, but {tolerance:.0e} is asked for; raise damping "
            f"(now {family.damping:g}), or take update: false without gradient"
        )
    return (weights + change) * free
