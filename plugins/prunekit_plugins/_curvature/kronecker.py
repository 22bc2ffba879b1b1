"""The curvature of a layer as a Kronecker product, and the blocks of its units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Self

import torch
from torch import Tensor

from prunekit import UnsupportedError
from prunekit_plugins._curvature.block_families import packed
from prunekit_plugins._curvature.blocks import Family
from prunekit_plugins._linalg.inversion import inverse


class Kronecker(Family):
    """H = A ⊗ G + αI of one layer, group by group, and what it is for each unit.

    With A = Q_A Λ_A Q_Aᵀ and G = Q_G Λ_G Q_Gᵀ, H⁻¹ = Q diag(1/(λ_a λ_g + α)) Qᵀ, Q = Q_A ⊗ Q_G: the damping is exact,
    not split between the factors. The part of H⁻¹ that belongs to unit r is M_r = Q_A diag(e_r) Q_Aᵀ with
    e_ra = Σ_g Q_G[r, g]² / (λ_a λ_g + α), and S_r = M_r⁻¹ = Q_A diag(1/e_r) Q_Aᵀ is the curvature of the unit's weights
    when all others are free to make up for their change. A block is S_r at the unit's kept weights.

    So a block's inverse is the unit's part of H⁻¹ as long as nothing is pruned. Afterwards the unit's own pruned weights
    are held at zero exactly, but those of other units are taken to be free: they make up for more than they can, and
    costs come out too low where G couples units. (They are exact again for a diagonal G.)

    Args:
        layer: The parameter.
        inputs: A ``[groups, inputs, inputs]``, float64.
        outputs: G ``[groups, units, units]``, float64.
        positions: Flat positions of the weights in the parameter, ``[groups, units, inputs]``.
        keep: Of the parameter, flat.
        offset: Where the parameter begins among all weights.
        damping: α.

    Raises:
        UnsupportedError: If α = 0 and the product has no inverse.
    """

    def __init__(
        self,
        layer: str,
        inputs: Tensor,
        outputs: Tensor,
        positions: Tensor,
        keep: Tensor,
        offset: int,
        damping: float,
    ) -> None:
        self.width = positions.shape[2]
        rows = positions.flatten(0, 1)
        index, there, units = packed(rows, keep[rows])
        super().__init__(layer, index + offset, there)
        self.units = units[self.order]
        # A weight's place among the inputs of its unit.
        places = torch.empty(rows.numel(), dtype=torch.long, device=rows.device)
        places[rows.flatten()] = torch.arange(self.width, device=rows.device).repeat(len(rows))
        self.columns = places[self.index - offset]
        self.positions = positions + offset
        self.inputs, self.outputs = inputs, outputs
        self.input_values, self.input_vectors = _eigen(inputs)
        self.output_values, self.output_vectors = _eigen(outputs)
        # Blocks of units that have nothing pruned come first.
        self.whole = sum(size == self.width for size in self.sizes)
        self._damp(damping)

    def with_damping(self, damping: float) -> Self:
        """The same factors with another damping; the eigenvectors are those that there are."""
        other = copy(self)
        other._damp(damping)
        return other

    def _damp(self, damping: float) -> None:
        """Invert the eigenvalues of the product."""
        self.damping = damping
        eigenvalues = self.output_values.unsqueeze(2) * self.input_values.unsqueeze(1) + damping
        if not bool((eigenvalues > 0).all()):
            zeros = [int((values == 0).sum()) for values in (self.input_values, self.output_values)]
            raise UnsupportedError(
                f"inverse_kfac: the Kronecker product of {self.layer} is singular (its factors have {zeros[0]} and "
                f"{zeros[1]} eigenvalues of zero); damping must be above 0"
            )
        self.reciprocals = 1 / eigenvalues  # [groups, units, inputs]
        parts = torch.bmm(self.output_vectors.square(), self.reciprocals)
        self.parts = parts.flatten(0, 1)  # e, [units, inputs]
        self.diagonals = torch.bmm(parts, self.input_vectors.square().mT).flatten(0, 1)  # of H⁻¹

    def curvature(self, start: int, stop: int) -> Tensor:
        """S_r − αI: what is left of C when the other units make up for a change."""
        blocks = self.damped(start, stop, self.damping)
        _, there = self.placed(start, stop)
        blocks.diagonal(dim1=1, dim2=2).sub_(there.to(blocks) * self.damping + (~there).to(blocks))
        return blocks

    def damped(self, start: int, stop: int, damping: float) -> Tensor:
        """S_r at kept weights; its damping is the one that the family was made with."""
        return self._built(start, stop, 1 / self.parts)

    def inverses(self, start: int, stop: int, damping: float) -> tuple[Tensor, Tensor]:
        """M_r where nothing is pruned, else by factorisation."""
        if stop > self.whole:
            return inverse(self.damped(start, stop, damping))
        definite = torch.ones(stop - start, dtype=torch.bool, device=self.index.device)
        return self._built(start, stop, self.parts), definite

    def inverse_diagonal(self, start: int, stop: int) -> Tensor | None:
        """Of M_r, where nothing is pruned."""
        if stop > self.whole:
            return None
        return self.diagonals[self.units[start:stop]].gather(1, self.columns[start:stop])

    def pieces(self, room: int) -> Iterator[tuple[int, int]]:
        """Cut also where blocks with pruned weights begin."""
        for start, stop in super().pieces(room):
            if start < self.whole < stop:
                yield start, self.whole
                yield self.whole, stop
            else:
                yield start, stop

    def curved(self, change: Tensor) -> float:
        """``Δᵀ(A ⊗ G)Δ`` over the whole layer, units coupled."""
        moved = change[self.positions]
        return float((self.undamped_product(moved) * moved).sum())

    def undamped_product(self, values: Tensor) -> Tensor:
        """(A ⊗ G)V = G V A, for V ``[groups, units, inputs]``."""
        return self.outputs @ values @ self.inputs

    def product(self, values: Tensor) -> Tensor:
        """G V A + αV."""
        return self.undamped_product(values).add_(values, alpha=self.damping)

    def inverse_product(self, values: Tensor) -> Tensor:
        """H⁻¹V, over all weights."""
        turned = self.output_vectors.mT @ values @ self.input_vectors
        return self.output_vectors @ turned.mul_(self.reciprocals) @ self.input_vectors.mT

    def diagonal(self) -> Tensor:
        """Of H, ``[groups, units, inputs]``."""
        outputs = self.outputs.diagonal(dim1=1, dim2=2)
        return outputs.unsqueeze(2) * self.inputs.diagonal(dim1=1, dim2=2).unsqueeze(1) + self.damping

    def _built(self, start: int, stop: int, eigenvalues: Tensor) -> Tensor:
        """``Q_A diag(·) Q_Aᵀ`` at each unit's kept weights, the identity in padding."""
        k = self.sizes[start]
        blocks = torch.zeros(stop - start, k, k, dtype=torch.float64, device=self.index.device)
        blocks.diagonal(dim1=1, dim2=2).fill_(1)
        for row, unit in enumerate(self.units[start:stop].tolist(), start):
            size = self.sizes[row]
            vectors = self.input_vectors[unit // self.outputs.shape[1]][self.columns[row, :size]]
            blocks[row - start, :size, :size] = (vectors * eigenvalues[unit]) @ vectors.t()
        return blocks


def weight_positions(shape: Sequence[int], groups: int, transposed: bool) -> Tensor:
    """Flat positions of a parameter's weights as ``[groups, units, inputs]``.

    A unit is an output, an output channel, or an entry of a bias (with one input, which is 1); of a transposed
    convolution, an output channel at one place of the kernel.
    """
    size = torch.Size(shape)
    if not transposed:
        return torch.arange(size.numel(), device="cpu").view(groups, size[0] // groups, -1)
    return (
        torch.arange(size.numel(), device="cpu")
        .view(groups, size[0] // groups, -1)
        .transpose(1, 2)
        .contiguous()
    )


def _eigen(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, those that are zero to rounding exactly so, and eigenvectors."""
    values, vectors = torch.linalg.eigh(matrices)
    smallest = values.shape[1] * torch.finfo(values.dtype).eps * values[:, -1:]
    return torch.where(values > smallest, values, 0.0), vectors
