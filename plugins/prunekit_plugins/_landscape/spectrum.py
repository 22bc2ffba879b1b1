"""A curvature matrix's eigenvalues, density and trace, from products with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from prunekit_plugins._linalg.lanczos import quadrature

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from prunekit import Moment, Split

    Once = Callable[[Callable[[], list[list[float]]], Generator | None], list[list[float]]]

_FEWEST = 3  # vectors: with fewer there is no error worth the name
_WIDTH = 2.0  # of a density's Gaussians, in units of the distance between the points that it is given at


@dataclass(frozen=True)
class OverKept:
    """A curvature matrix over the weights that are kept.

    Attributes:
        product: With a flat vector.
        like: A vector of zeros.
        places: Of a vector's entries among all weights.
        steady: Makes a context in which many products in a row are faster.
    """

    product: Callable[[Tensor], Tensor]
    like: Tensor
    places: Tensor
    steady: Callable[[], AbstractContextManager[None]]


def over_kept(
    moment: Moment, kind: Literal["hessian", "ggn"], data: Split | None, layer: str | None
) -> OverKept:
    """A curvature matrix over the weights that are kept.

    Args:
        moment: At the weights now.
        kind: Which matrix.
        data: As for ``Moment.loss``.
        layer: The parameter whose block it is; ``None`` for all.
    """
    import torch

    operator = moment.operator(kind, data, None if layer is None else [layer])
    masks = moment.masks()
    kept = torch.cat([masks[name].flatten() for name in operator.shapes])
    places = kept.nonzero().squeeze(1)
    whole = torch.zeros(len(kept), dtype=getattr(torch, str(operator.dtype)), device=kept.device)

    def product(vector: Tensor) -> Tensor:
        if len(places) == len(kept):  # to gather and to spread so many takes a tenth of a product
            return operator @ vector
        whole.index_copy_(0, places, vector)  # elsewhere it stays zero
        return (operator @ whole).index_select(0, places)

    return OverKept(product, torch.zeros_like(whole[: len(places)]), places, operator.steady)


@dataclass(frozen=True)
class Density:
    """Stochastic Lanczos quadrature.

    Attributes:
        nodes: ``[vectors, iterations]``; NaN where a vector has fewer.
        weights: The same; each vector's add up to 1.
        size: Of the matrix.
    """

    nodes: np.ndarray
    weights: np.ndarray
    size: int

    def trace(self) -> tuple[float, float]:
        """The trace, and its standard error over the vectors."""
        return _mean(self.size * np.nansum(self.nodes * self.weights, 1))

    def smooth(self, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values, the density of eigenvalues there (its integral is 1), and its standard error.

        Every node counts as a Gaussian, of a standard deviation of twice the distance between the points, which reach so far
        that nothing is left out. So the integral of the value times the density is the trace over the size.
        """
        if not self.size:
            nothing = np.full((3, points), np.nan)
            return nothing[0], nothing[1], nothing[2]
        low, high = float(np.nanmin(self.nodes)), float(np.nanmax(self.nodes))
        room = max(high - low, 1e-6 * max(abs(low), abs(high), 1e-30))
        # Eight standard deviations on either side: step·(points − 1) = room + 2·8·2·step.
        step = room / max(points - 1 - 16 * _WIDTH, 1)
        width = _WIDTH * step
        values = low - 8 * width + step * np.arange(points)
        heights = np.zeros((len(self.nodes), points))
        for place, (nodes, weights) in enumerate(zip(self.nodes, self.weights, strict=True)):
            known = ~np.isnan(nodes)
            apart = (values - nodes[known, None]) / width
            bells = np.exp(-(apart**2) / 2) / (width * np.sqrt(2 * np.pi))
            heights[place] = (weights[known, None] * bells).sum(0)
        count = len(heights)
        error = heights.std(0, ddof=1) / count**0.5 if count > 1 else np.full(points, np.nan)
        return values, heights.mean(0), error


def density(
    product: Callable[[Tensor], Tensor],
    like: Tensor,
    iterations: int,
    vectors: int,
    tolerance: float,
    generator: Generator,
    once: Once = lambda piece, generator: piece(),
) -> Density:
    """Estimate it from random signs, until the trace is known well enough.

    That is when its standard error is at most ``tolerance`` of the sum of the eigenvalues' sizes, from three vectors on.
    Reference: Ubaru, Chen & Saad (2017); the error is that over vectors, not that of too few iterations.

    Args:
        product: x to Ax, of flat vectors like ``like``.
        like: ``[n]``; gives size, type and device.
        iterations: Products for each vector.
        vectors: The most.
        tolerance: As above; 0 for all the vectors.
        generator: For the signs.
        once: As :meth:`prunekit.Moment.once`.
    """
    import torch

    shape = (vectors, min(iterations, len(like)))
    nodes, weights = np.full(shape, np.nan), np.full(shape, np.nan)
    memory = like.new_empty(
        shape[1] + 1, len(like)
    )  # the system hands out so much once, and not for each vector
    for count in range(1, vectors + 1 if len(like) else 2):
        signs = torch.randint(2, (len(like),), generator=generator) * 2 - 1
        if not len(like):
            break

        def one(signs: Tensor = signs) -> list[list[float]]:
            return [
                part.tolist() for part in quadrature(product, signs.to(like), iterations, generator, memory)
            ]

        for whole, part in zip((nodes, weights), once(one, generator), strict=True):
            whole[count - 1, : len(part)] = part
        if count >= _FEWEST:
            sofar = Density(nodes[:count], weights[:count], len(like))
            sizes = len(like) * np.nansum(abs(sofar.nodes) * sofar.weights, 1).mean()
            if sofar.trace()[1] <= tolerance * sizes:
                break
    return Density(nodes[:count], weights[:count], len(like))


def _mean(values: np.ndarray) -> tuple[float, float]:
    count = len(values)
    return float(values.mean()), float(values.std(ddof=1) / count**0.5) if count > 1 else float("nan")
