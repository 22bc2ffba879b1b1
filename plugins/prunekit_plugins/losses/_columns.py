"""Columns in which only one term of each example is not zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def apart(values: Tensor) -> Iterator[Tensor]:
    """For each index of the last axis, ``values`` with zeros at all others."""
    import torch

    if values.shape[-1] == 1:
        yield values
        return
    for k in range(values.shape[-1]):
        column = torch.zeros_like(values)
        column[..., k] = values[..., k]
        yield column
