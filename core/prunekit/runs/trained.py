"""A dense network that another run has trained, to begin a run with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from prunekit.records import Row


@dataclass(frozen=True)
class Trained:
    """What training has left.

    Attributes:
        weights: Parameters and buffers of the best epoch.
        history: A row for each epoch.
    """

    weights: Mapping[str, Tensor]
    history: Sequence[Mapping[str, float | None]]


Source = Callable[[Row, Mapping[str, str]], Trained | None]
"""Gives one that was trained from the same values, under these circumstances and from these inputs, if there is one."""
