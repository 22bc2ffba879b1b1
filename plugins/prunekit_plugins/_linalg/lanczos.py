"""Eigenvalues of a symmetric matrix that is known by its products (Lanczos, 1950), with full reorthogonalisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Generator, Tensor

    Product = Callable[[Tensor], Tensor]

_CANCELLED = (
    0.7  # of a vector's norm left after orthogonalising: below, once is not enough (Daniel et al., 1976)
)
_LOOK = 5  # products between looks at the residuals


@dataclass(frozen=True)
class Pairs:
    """Eigenvalues with their vectors.

    Attributes:
        values: ``[k]``, float64.
        residuals: ``[k]``, ‖Av − λv‖ of vectors of norm 1; an eigenvalue lies within that of each value.
        vectors: ``[k, n]``.
        products: With the matrix, in all.
    """

    values: np.ndarray
    residuals: np.ndarray
    vectors: Tensor
    products: int


class Krylov:
    """An orthonormal basis of a Krylov space that grows, and the matrix in it, which is tridiagonal.

    Args:
        product: x to Ax, of flat vectors.
        start: ``[n]``, not zero.
        generator: For new directions where the space is complete (an invariant subspace).
        apart: ``[k, n]``, orthonormal; the space is kept orthogonal to these.
        room: The most vectors.
        memory: ``[room + 1, n]``, to work in; its own by default.
    """

    def __init__(
        self,
        product: Product,
        start: Tensor,
        generator: Generator,
        room: int,
        apart: Tensor | None = None,
        memory: Tensor | None = None,
    ) -> None:
        self._product, self._generator, self._apart = product, generator, apart
        size = len(start)
        self.limit = min(room, size - (0 if apart is None else len(apart)))
        # A vector is formed where it will stand: with new memory for every operation on so long ones, the system's
        # making it takes as long as the operations do. The one after the last is never taken in.
        self.basis = start.new_empty(max(self.limit, 0) + 1, size) if memory is None else memory
        self._diagonal: list[float] = []
        self._beside: list[float] = []
        if not self._orthogonal(self.basis[0].copy_(start)):
            self._anywhere(self.basis[0])

    @property
    def count(self) -> int:
        """Vectors so far, and so products."""
        return len(self._diagonal)

    @property
    def complete(self) -> bool:
        """Whether there is no room left: no more may be asked for, or the space is the whole one."""
        return self.count >= self.limit

    @property
    def invariant(self) -> bool:
        """Whether the matrix leads out of the space no more."""
        return not self._beside[-1]

    def grow(self) -> None:
        """Take in one more vector, for one product."""
        import torch

        place = self.count
        vector, following = self.basis[place], self.basis[place + 1]
        product = self._product(vector)
        self._diagonal.append(float(product @ vector))
        # What is large goes first, so that of all the others only rounding is left, and once is mostly enough.
        torch.sub(product, vector, alpha=self._diagonal[-1], out=following)
        if place:
            following.sub_(self.basis[place - 1], alpha=self._beside[-1])
        norm = self._orthogonal(following)
        scale = max(map(abs, [*self._diagonal, *self._beside, norm]))
        if norm <= 10 * torch.finfo(following.dtype).eps * scale * len(following) ** 0.5:
            norm = 0.0
            if not self.complete:
                self._anywhere(following)
        self._beside.append(norm)

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Eigenvalues of the matrix in the space, ascending, their residuals, and their vectors in it, as columns."""
        matrix = np.diag(self._diagonal) + sum(np.diag(self._beside[:-1], k) for k in (-1, 1))
        values, vectors = np.linalg.eigh(matrix)
        return values, np.abs(self._beside[-1] * vectors[-1]), vectors

    def lifted(self, vectors: np.ndarray) -> Tensor:
        """Vectors of the whole space, as rows, from such in the basis, as columns."""
        import torch

        lifted: Tensor = torch.as_tensor(vectors.T.copy()).to(self.basis) @ self.basis[: self.count]
        return lifted

    def _orthogonal(self, vector: Tensor) -> float:
        """Leave of a vector what is orthogonal to all there is, of norm 1; return how much that was, zero if nothing."""
        before = norm = float(vector.norm())
        for _ in range(3):
            if not norm:
                break
            for rows in (self._apart, self.basis[: self.count]):
                if rows is not None and len(rows):
                    vector.addmv_(rows.T, rows @ vector, alpha=-1)
            last, norm = norm, float(vector.norm())
            if norm > _CANCELLED * last:
                break
        if norm and norm > 1e-30 * before:
            vector.div_(norm)
        return norm

    def _anywhere(self, vector: Tensor) -> None:
        import torch

        drawn = torch.randn(len(vector), generator=self._generator, dtype=torch.float64)
        self._orthogonal(vector.copy_(drawn))


def extreme(
    product: Product,
    like: Tensor,
    largest: int,
    smallest: int,
    iterations: int,
    tolerance: float,
    generator: Generator,
) -> tuple[Pairs, Pairs]:
    """The largest and the smallest eigenvalues, equal ones as often as they occur.

    A Krylov space holds one vector of an eigenvalue that occurs several times. So what has been found is set apart and the
    rest searched, until it holds nothing that belongs among them.

    Args:
        product: x to Ax, of flat vectors like ``like``.
        like: ``[n]``; gives size, type and device.
        largest: How many of the largest.
        smallest: How many of the smallest.
        iterations: Products of the first search, at most; further ones get as many each.
        tolerance: Of a residual, as a fraction of the largest size of an eigenvalue.
        generator: For where to begin.

    Returns:
        The largest, in descending order, and the smallest, in ascending order, fewer where there are no more.
    """
    import torch

    def search(top: int, bottom: int, apart: Tensor | None, scale: float) -> tuple[Krylov, float]:
        start = torch.randn(len(like), generator=generator, dtype=torch.float64).to(like)
        space = Krylov(product, start, generator, iterations, apart)
        while not space.complete:
            space.grow()
            count = space.count
            if not space.complete and (count % _LOOK or count < top + bottom):
                continue
            values, residuals, _ = space.ritz()
            scale = max(scale, float(np.abs(values).max()))
            ends = [*range(min(bottom, count)), *range(max(count - top, min(bottom, count)), count)]
            if count >= top + bottom and (residuals[ends] <= tolerance * scale).all():
                break
        return space, scale

    if not len(like) or not largest + smallest:
        nothing = Pairs(np.empty(0), np.empty(0), like.new_empty(0, len(like)), 0)
        return nothing, nothing
    space, scale = search(largest, smallest, None, 0.0)
    high, low = _ends(space, largest, 1), _ends(space, smallest, -1)
    products, whole = space.count, space.count == len(like)
    for sign in (1, -1):
        pairs = high if sign > 0 else low
        while not whole and len(pairs.values) and (pairs.residuals <= tolerance * scale).all():
            space, scale = search(int(sign > 0), int(sign < 0), pairs.vectors, scale)
            products += space.count
            if not space.count:
                break
            other = _ends(space, 1, sign)
            if sign * (other.values[0] - pairs.values[-1]) <= tolerance * scale:
                break
            pairs = _merged(pairs, other, sign)
        high, low = (pairs, low) if sign > 0 else (high, pairs)
    products += len(high.values) + len(low.values)
    return _measured(high, product, products), _measured(low, product, products)


def _ends(space: Krylov, count: int, sign: int) -> Pairs:
    """So many at the upper end of a space, in descending order, or at the lower one, in ascending order."""
    values, residuals, vectors = space.ritz()
    places = (np.arange(len(values))[::-1] if sign > 0 else np.arange(len(values)))[:count]
    return Pairs(values[places], residuals[places], space.lifted(vectors[:, places]), space.count)


def _merged(pairs: Pairs, other: Pairs, sign: int) -> Pairs:
    """The same number of pairs with others among them, the last ones gone."""
    import torch

    values = np.append(pairs.values, other.values)
    order = np.argsort(-sign * values, kind="stable")[: len(pairs.values)]
    residuals = np.append(pairs.residuals, other.residuals)[order]
    vectors = torch.cat([pairs.vectors, other.vectors])[torch.as_tensor(order.copy())]
    return Pairs(values[order], residuals, vectors, pairs.products)


def _measured(pairs: Pairs, product: Product, products: int) -> Pairs:
    """The same with residuals as they are, rounding included, for a product each."""
    residuals = [
        float((product(vector).double() - value * vector.double()).norm() / vector.double().norm())
        for value, vector in zip(pairs.values, pairs.vectors, strict=True)
    ]
    return Pairs(pairs.values, np.array(residuals), pairs.vectors, products)


def quadrature(
    product: Product, start: Tensor, iterations: int, generator: Generator, memory: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Gauss quadrature of the spectral measure of a vector x (Golub & Meurant, 2010, chapter 6).

    ``xᵀf(A)x = ‖x‖²·Σ weight·f(node)`` for polynomials f of a degree below twice the number of nodes.

    Args:
        product: x to Ax, of flat vectors.
        start: x.
        iterations: Products, at most.
        generator: As for :class:`Krylov`.
        memory: As for :class:`Krylov`.

    Returns:
        Nodes, ascending, and weights, which add up to 1; as many as ``iterations``, or as the matrix has rows.
    """
    space = Krylov(product, start, generator, iterations, memory=memory)
    while not space.complete:
        space.grow()
        if space.invariant:  # what is orthogonal to an invariant subspace has no weight
            break
    values, _, vectors = space.ritz()
    return values, vectors[0] ** 2
