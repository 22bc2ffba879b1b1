"""A damped inverse that is known by its products, from the vectors that its matrix is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from prunekit import Detailed, SpecError, UnsupportedError
from prunekit.masks import FlatIndex


class Products(Detailed):
    """H⁻¹ with H = αI + XᵀX/P, over the kept weights, by the Woodbury identity; never formed.

    H⁻¹ = (I − Xᵀ(αP I + XXᵀ)⁻¹X) / α. ``inverse @ vectors`` takes and returns ``{parameter name: tensor}``: at pruned
    weights a vector is not read, and the product zero. As a mapping, it has the inverse's diagonal by parameter.

    Values are differences from 1/α: where H has an eigenvalue far above α, they hold it to some eps · eigenvalue/α.

    Args:
        shapes: By parameter, in order.
        rows: X ``[m, K]``, in parts with some rows each; multiplied in float64.
        kept: Flat indices of the K kept weights, parameters one after another.
        normaliser: P.
        damping: α, above 0.
        memory: Bytes; an eighth of it is for pieces of X in float64.

    Raises:
        UnsupportedError: If α is lost in rounding beside the vectors.
    """

    def __init__(
        self,
        shapes: Mapping[str, torch.Size],
        rows: Sequence[Tensor],
        kept: Tensor,
        normaliser: float,
        damping: float,
        memory: int,
    ) -> None:
        self.rows, self.kept = list(rows), kept
        self.normaliser, self.damping = normaliser, damping
        self.count = sum(len(part) for part in self.rows)
        self._width = max(1, memory // 8 // (8 * max(1, self.count)))
        gram = torch.zeros(self.count, self.count, dtype=torch.float64, device=kept.device)
        for _, piece in self._pieces():
            gram.addmm_(piece, piece.t())
        gram.diagonal().add_(damping * normaliser)
        self.factor, failed = torch.linalg.cholesky_ex(gram)
        if int(failed):
            raise UnsupportedError(
                f"inverse_products: {damping:g} is lost in rounding beside {self.count:,} vectors with squares of up to "
                f"{float(gram.diagonal().max()) / normaliser:.3g}; raise damping"
            )
        flat = torch.zeros(FlatIndex(shapes).total, dtype=torch.float64, device=kept.device)
        for part, piece in self._pieces():
            within = torch.linalg.solve_triangular(self.factor, piece, upper=False)
            flat[kept[part]] = (1 - within.square_().sum(0)) / damping
        super().__init__(FlatIndex(shapes).split(flat))

    def __matmul__(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """H⁻¹v.

        Args:
            vectors: One tensor per parameter, in its shape.

        Raises:
            SpecError: If names or shapes are not the inverse's.
        """
        wrong = [n for n in {**self, **vectors} if n not in vectors or n not in self]
        wrong += [n for n, t in self.items() if n not in wrong and vectors[n].shape != t.shape]
        if wrong:
            raise SpecError(f"vector: names and shapes are not those of the inverse: {', '.join(wrong)}")
        flat = torch.cat([vectors[name].flatten().to(self.kept.device, torch.float64) for name in self])
        within = torch.cholesky_solve(self._along(flat).unsqueeze(1), self.factor).squeeze(1)
        product = torch.zeros_like(flat)
        for part, piece in self._pieces():
            product[self.kept[part]] = (flat[self.kept[part]] - within @ piece) / self.damping
        return {
            name: p.to(torch.promote_types(vectors[name].dtype, torch.float32))
            for name, p in FlatIndex.of(self).split(product).items()
        }

    def curved(self, change: Tensor) -> float:
        """``Δᵀ C Δ`` without damping, C = XᵀX/P, for a change of all weights; that of pruned weights is not read."""
        return float(self._along(change.double()).square().sum()) / self.normaliser

    def _along(self, values: Tensor) -> Tensor:
        """X v for a vector over all weights, ``[m]``."""
        along = torch.zeros(self.count, dtype=torch.float64, device=self.kept.device)
        for part, piece in self._pieces():
            along.addmv_(piece, values[self.kept[part]])
        return along

    def _pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """X, some weights at a time, ``[m, some]`` in float64."""
        for start in range(0, len(self.kept), self._width):
            part = slice(start, start + self._width)
            yield part, torch.cat([rows[:, part].double() for rows in self.rows])
