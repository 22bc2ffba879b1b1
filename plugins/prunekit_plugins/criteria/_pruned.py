"""Sums over the weights that a step prunes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def total(change: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> float:
    """Sum in float64 over what ``masks`` drop; weights already gone are zero, and so is their change."""
    import torch

    # A fill and a sum: picking the dropped ones out first takes several times as long.
    return sum(float(c.masked_fill(masks[k], 0.0).sum(dtype=torch.float64)) for k, c in change.items())
