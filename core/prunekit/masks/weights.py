"""The prunable weights as layers, and as one vector. Imports torch only when a vector is made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """A prunable tensor.

    Attributes:
        name: The parameter's.
        shape: The parameter's.
        input_axis: The axis that runs over what enters the layer: 0 for transposed convolutions, ``None`` where it is not
            known.
        start: Position of its first weight among all prunable weights, one tensor after another.
        output_axis: The axis that runs over what leaves it. Further axes are those of a kernel; or, of stacked matrices,
            whatever is neither.
    """

    name: str
    shape: tuple[int, ...]
    input_axis: int | None = 1
    start: int = 0
    output_axis: int | None = 0

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def part(self) -> slice:
        """Its weights among all."""
        return slice(self.start, self.start + self.size)


class FlatIndex:
    """Where each weight stands when all prunable tensors are laid one after another, flattened in C order.

    Examples:
        >>> import torch
        >>> index = FlatIndex({"a": (2, 2), "b": (3,)})
        >>> values = index.flat({"a": torch.ones(2, 2), "b": torch.zeros(3)})
        >>> values.tolist(), index.split(values)["b"].tolist()
        ([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    """

    def __init__(self, shapes: Mapping[str, Iterable[int]]) -> None:
        self.layers: list[Layer] = []
        start = 0
        for name, shape in shapes.items():
            self.layers.append(Layer(name, tuple(shape), start=start))
            start += self.layers[-1].size
        self.total = start

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The index of some tensors, in their order."""
        return cls({name: t.shape for name, t in tensors.items()})

    def flat(self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Tensor:
        """All values in one vector on the first tensor's device, a copy; in the tensors' own dtype by default."""
        import torch

        parts = [tensors[layer.name].detach().reshape(-1) for layer in self.layers]
        device = parts[0].device
        return torch.cat([part.to(device, dtype or part.dtype) for part in parts])

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """Undo :meth:`flat`: a view for each layer, in its shape."""
        return {layer.name: values[layer.part].view(layer.shape) for layer in self.layers}


def pruned_counts(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """How many weights are gone, by parameter; a GPU is waited for once, however many there are.

    Examples:
        >>> import torch
        >>> pruned_counts({"w": torch.tensor([True, False, False])})
        {'w': 2}
    """
    if all(mask.is_cpu for mask in masks.values()):  # where NumPy counts in a fifth of the time
        kept: list[float] = [int(np.count_nonzero(mask.numpy())) for mask in masks.values()]
    else:
        kept = read_together(mask.count_nonzero() for mask in masks.values())
    return {name: mask.numel() - int(k) for (name, mask), k in zip(masks.items(), kept, strict=True)}


def read_together(scalars: Iterable[Tensor]) -> list[float]:
    """The values of tensors without axes and of one type, in one transfer where they lie on a GPU."""
    import torch

    parts = list(scalars)
    values: list[float] = torch.stack([part.to(parts[0].device) for part in parts]).tolist() if parts else []
    return values
