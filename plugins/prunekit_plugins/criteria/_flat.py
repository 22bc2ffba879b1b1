"""All weights in one vector, and who asks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING

from prunekit import Criterion

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]


def flat(tensors: Tensors) -> Tensor:
    """All values in one float64 vector, tensors one after another."""
    import torch

    return torch.cat([t.flatten().double() for t in tensors.values()])


def shaped(values: Tensor, like: Tensors) -> dict[str, Tensor]:
    """Undo :func:`flat`."""
    import torch

    parts = torch.split(values, [t.numel() for t in like.values()])
    return {name: part.view(t.shape) for (name, t), part in zip(like.items(), parts, strict=True)}


def who(criterion: Criterion) -> Hashable:
    """A criterion with its options: what a remembered result belongs to."""
    return type(criterion).__qualname__, repr(criterion.options), criterion.lam
