"""The factor A of a curvature matrix AᵀA, by its products: what duals of quadratic models live on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from prunekit.masks import FlatIndex
from prunekit_plugins._curvature.jacobian_factors import Factors, LayerFactors, LayerRows

_SCALING = 8  # roundings of a product besides those of its sums: the scale, its square root, conversions


class Rows:
    """A ``[rows, weights]`` behind :class:`Factors`: batch by batch, its columns one after another, each over its examples.

    Vectors are flat and float64. Products are in the factors' own precision, unless these are converted, a layer of a
    batch at a time.

    Args:
        factors: C.
        convert: Of every tensor of the factors, before it is used.

    Attributes:
        shapes: Columns and examples of each batch.
        count: How many rows.
        terms: How many terms the longest sum of a product has, and more: a product in float64 is off by no more than
            ``terms · 2⁻⁵³`` of the same product of sizes, up to higher orders.
    """

    def __init__(self, factors: Factors, convert: Callable[[Tensor], Tensor] | None = None) -> None:
        self._factors, self._convert = factors, convert
        self._index = FlatIndex(factors.shapes)
        self._scale = factors.normaliser**-0.5
        self.shapes = [_shape(part) for part in factors.parts]
        self.count = sum(columns * examples for columns, examples in self.shapes)
        self.terms = (
            _SCALING + len(factors.shapes) + len(factors.parts) + max(map(_terms, factors.parts), default=0)
        )

    def along(self, vector: Tensor) -> Tensor:
        """``A v``."""
        given = self._index.split(vector)
        parts = [vector.new_zeros(0)]
        for layers, shape in zip(self._layers(), self.shapes, strict=True):
            total = vector.new_zeros(shape)
            for name, layer in layers:
                total += layer.along(given[name])
            parts.append(total.flatten())
        return torch.cat(parts).mul_(self._scale)

    def back(self, share: Tensor) -> Tensor:
        """``Aᵀ z``."""
        total = share.new_zeros(self._index.total)
        results = self._index.split(total)
        start = 0
        for layers, (columns, examples) in zip(self._layers(), self.shapes, strict=True):
            stop = start + columns * examples
            here, start = share[start:stop].view(columns, examples), stop
            for name, layer in layers:
                results[name] += layer.back(here, self._factors.shapes[name])
        return total.mul_(self._scale)

    @property
    def exact(self) -> Rows:
        """The stored numbers, taken as they are, multiplied in float64."""
        return Rows(self._factors, Tensor.double)

    @property
    def sizes(self) -> Rows:
        """Sums of products of absolute values, which are no smaller than absolute values of sums."""
        return Rows(self._factors, lambda t: t.double().abs())

    def by_example(self, share: Tensor) -> Tensor:
        """A number for each row as ``[examples, columns]``, batches one after another; zero where a batch has fewer."""
        most = max((columns for columns, _ in self.shapes), default=0)
        pieces = torch.split(share, [columns * examples for columns, examples in self.shapes])
        laid = [share.new_zeros(0, most)]
        for piece, (columns, examples) in zip(pieces, self.shapes, strict=True):
            rows = piece.view(columns, examples).t()
            laid.append(torch.nn.functional.pad(rows, (0, most - columns)))
        return torch.cat(laid)

    def _layers(self) -> Iterator[Iterator[tuple[str, LayerFactors | LayerRows]]]:
        """The layers of each batch, converted as they are asked for."""
        for part in self._factors.parts:
            if self._convert is None:
                yield iter(part.items())
            else:
                convert = self._convert
                yield ((name, layer.map(convert)) for name, layer in part.items())


def _shape(part: Mapping[str, LayerFactors | LayerRows]) -> tuple[int, int]:
    """Columns and examples of a batch."""
    for layer in part.values():
        if isinstance(layer, LayerFactors):
            return layer.returned.shape[0], layer.returned.shape[3]
        return layer.rows.shape[0], layer.rows.shape[1]
    return 0, 0


def _terms(part: Mapping[str, LayerFactors | LayerRows]) -> int:
    """More than the longest sum over a batch has terms, in either direction."""
    most = 0
    for layer in part.values():
        if isinstance(layer, LayerFactors):
            columns, groups, outputs, examples, positions = layer.returned.shape
            entered = layer.inputs.shape[1]
            most = max(most, entered + groups * outputs * positions, columns + examples * positions)
        else:
            columns, examples, weights = layer.rows.shape
            most = max(most, weights, columns * examples)
    return most
