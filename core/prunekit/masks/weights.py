"""The prunable weights as layers, and as one vector."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A prunable tensor as a selector's check sees it.

    Attributes:
        name: The parameter's.
        shape: The parameter's.
        input_axis: The axis that runs over what enters the layer: 0 for transposed convolutions.
    """

    name: str
    shape: tuple[int, ...]
    input_axis: int = 1

    @property
    def size(self) -> int:
        """Number of weights."""
        size = 1
        for n in self.shape:
            size *= n
        return size
