"""A curvature matrix over all weights, held as the factors of its outer products and known by its products."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunekit import Detailed
from prunekit.masks import FlatIndex

_ENTRIES = 1 << 24  # numbers of a piece of single weights' gradients


@dataclass(frozen=True)
class LayerFactors:
    """A layer's part of ``J_nᵀ s_nc``, for the examples of one batch: ``Σ_t v_ct u_tᵀ``.

    Attributes:
        inputs: u ``[groups, inputs, N, T]``.
        returned: v ``[columns, groups, outputs, N, T]``.
        transposed: Whether the parameter stores inputs before outputs.
    """

    inputs: Tensor
    returned: Tensor
    transposed: bool

    @property
    def nbytes(self) -> int:
        """How many bytes of memory both tensors take."""
        return self.inputs.nbytes + self.returned.nbytes

    def smaller(self) -> LayerFactors | LayerRows:
        """The same, or the gradients that these are factors of, where they take less memory."""
        groups, a, n, t = self.inputs.shape
        columns, _, b = self.returned.shape[:3]
        if columns * groups * a * b >= groups * t * (a + columns * b):
            return self
        entered = self.inputs.permute(2, 0, 3, 1)  # [N, groups, T, inputs]
        rows = self.inputs.new_empty(columns, n, groups * a * b)
        for v, row in zip(self.returned, rows, strict=True):
            gradients = v.permute(2, 0, 1, 3) @ entered
            row.copy_((gradients.mT if self.transposed else gradients).flatten(1))
        return LayerRows(rows)

    def along(self, vector: Tensor) -> Tensor:
        """``J v``, ``[columns, N]``, for a tensor in the parameter's shape."""
        groups, a, n, t = self.inputs.shape
        weight = (
            vector.reshape(groups, a, -1).transpose(1, 2)
            if self.transposed
            else vector.reshape(groups, -1, a)
        )
        moved = torch.bmm(weight.to(self.inputs.dtype), self.inputs.view(groups, a, n * t))
        return torch.stack([(v * moved.view_as(v)).sum((0, 1, 3)) for v in self.returned])

    def back(self, share: Tensor, shape: torch.Size) -> Tensor:
        """``Jᵀ z`` in the parameter's shape, for ``z`` ``[columns, N]``."""
        groups, a, n, t = self.inputs.shape
        merged = torch.zeros_like(self.returned[0])
        for v, z in zip(self.returned, share, strict=True):
            merged.addcmul_(v, z.to(v.dtype).unsqueeze(1))
        total = torch.bmm(merged.view(groups, -1, n * t), self.inputs.view(groups, a, n * t).transpose(1, 2))
        return (total.transpose(1, 2) if self.transposed else total).reshape(shape)

    def at(self, indices: Tensor, shape: torch.Size) -> Tensor:
        """J of single weights, ``[columns · N, weights]``, by their flat indices in the parameter."""
        groups, a, n, t = self.inputs.shape
        size = math.prod(shape) // groups
        group, within = indices // size, indices % size
        first, second = within // (size // a), within % (size // a)
        output, entered = (second, first) if self.transposed else (within // a, within % a)
        rows = self.returned.new_empty(len(self.returned), n, len(indices))
        for some in torch.split(
            torch.arange(len(indices), device=indices.device), max(1, _ENTRIES // (n * t))
        ):
            u = self.inputs[group[some], entered[some]]
            for v, row in zip(self.returned, rows, strict=True):
                row[:, some] = (v[group[some], output[some]] * u).sum(2).t()
        return rows.flatten(0, 1)

    def diagonal(self, shape: torch.Size) -> Tensor:
        """``Σ_n Σ_c (Σ_t v u)²`` in the parameter's shape."""
        groups, a, n, t = self.inputs.shape
        if t == 1:
            squares = self.returned.square().sum(0)[..., 0]
            total = torch.bmm(squares, self.inputs[..., 0].square().transpose(1, 2))
        else:
            total = self.inputs.new_zeros(groups, self.returned.shape[2], a)
            for v in self.returned:
                for example in range(n):
                    total += torch.bmm(v[:, :, example], self.inputs[:, :, example].transpose(1, 2)).square_()
        return (total.transpose(1, 2) if self.transposed else total).reshape(shape)

    def map(self, function: Any) -> LayerFactors:
        """The same with the function applied to every tensor."""
        return LayerFactors(function(self.inputs), function(self.returned), self.transposed)


@dataclass(frozen=True)
class LayerRows:
    """The same as rows ``[columns, N, weights]``, for parameters without factors, or whose factors are larger."""

    rows: Tensor

    @property
    def nbytes(self) -> int:
        """How many bytes of memory the rows take."""
        return self.rows.nbytes

    def along(self, vector: Tensor) -> Tensor:
        """``J v``, ``[columns, N]``."""
        return self.rows @ vector.flatten().to(self.rows.dtype)

    def back(self, share: Tensor, shape: torch.Size) -> Tensor:
        """``Jᵀ z`` in the parameter's shape."""
        return torch.einsum("cn,cnk->k", share.to(self.rows.dtype), self.rows).view(shape)

    def at(self, indices: Tensor, shape: torch.Size) -> Tensor:
        """J of single weights, ``[columns · N, weights]``, by their flat indices in the parameter."""
        return self.rows[..., indices].flatten(0, 1)

    def diagonal(self, shape: torch.Size) -> Tensor:
        """Sums of squares in the parameter's shape."""
        return self.rows.square().sum((0, 1)).view(shape)

    def map(self, function: Any) -> LayerRows:
        """The same with the function applied to every tensor."""
        return LayerRows(function(self.rows))


class Factors(Detailed):
    """The diagonal of a curvature matrix by parameter, with products of the whole matrix.

    Args:
        parts: For each batch, the layers' factors by parameter.
        shapes: By parameter, in order.
        normaliser: The loss's.
        device: Of the parameters.
    """

    def __init__(
        self,
        parts: Sequence[Mapping[str, LayerFactors | LayerRows]],
        shapes: Mapping[str, torch.Size],
        normaliser: float,
        device: torch.device,
    ) -> None:
        self.parts, self.shapes, self.normaliser = list(parts), dict(shapes), normaliser
        sums = {n: torch.zeros(shape, dtype=torch.float64, device=device) for n, shape in shapes.items()}
        for part in self.parts:
            for name, layer in part.items():
                sums[name] += layer.diagonal(shapes[name])
        super().__init__({name: t.div_(normaliser) for name, t in sums.items()})

    def product(self, vector: Tensor) -> Tensor:
        """``C v`` for a flat float64 vector over all weights."""
        given = self._split(vector)
        total = torch.zeros_like(vector)
        results = self._split(total)
        for part in self.parts:
            along = self._along(part, given)
            for name, layer in part.items():
                results[name] += layer.back(along, self.shapes[name])
        return total.div_(self.normaliser)

    def curved(self, change: Tensor) -> float:
        """``Δᵀ C Δ`` for a change of all weights."""
        given, total = self._split(change), 0.0
        for part in self.parts:
            total += float(self._along(part, given).square().sum())
        return total / self.normaliser

    def among(self, indices: Tensor) -> Tensor:
        """C of single weights with each other, float64, by their flat indices in ascending order."""
        total = torch.zeros(len(indices), len(indices), dtype=torch.float64, device=indices.device)
        layers = FlatIndex(self.shapes).layers
        for part in self.parts:
            held = [x for x in layers if x.name in part]
            inside = [
                indices[(indices >= x.part.start) & (indices < x.part.stop)] - x.part.start for x in held
            ]
            rows = [part[x.name].at(at, self.shapes[x.name]) for x, at in zip(held, inside, strict=True)]
            where = torch.cat(
                [torch.searchsorted(indices, at + x.part.start) for x, at in zip(held, inside, strict=True)]
            )
            joined = torch.cat([r.double() for r in rows], 1)
            total[where[:, None], where] += joined.t() @ joined
        return total.div_(self.normaliser)

    def _along(self, part: Mapping[str, LayerFactors | LayerRows], given: Mapping[str, Tensor]) -> Tensor:
        """``J v`` of one batch, summed over the layers, float64."""
        along = [layer.along(given[name]).double() for name, layer in part.items()]
        return torch.stack(along).sum(0) if along else torch.zeros(1, 1, dtype=torch.float64, device="cpu")

    def _split(self, vector: Tensor) -> dict[str, Tensor]:
        return FlatIndex(self.shapes).split(vector)
