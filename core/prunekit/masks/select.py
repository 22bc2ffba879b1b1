"""Exact selection of the smallest saliencies. The one place that decides ties."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def smallest(values: Tensor, k: int) -> Tensor:
    """Mark the ``k`` smallest of a finite vector; of equal ones the lower index goes first.

    Finds the k-th smallest value by partition (linear time) and counts the ties at it, rather than
    sorting or comparing with a threshold, which takes too many or too few when values repeat.

    Args:
        values: One-dimensional, finite.
        k: How many, 0 to ``len(values)``.

    Returns:
        Bool vector with exactly ``k`` True.

    Example:
        >>> smallest(torch.tensor([3.0, 1.0, 1.0, 1.0]), 2).tolist()
        [False, True, True, False]
    """
    if k <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    if k >= len(values):
        return torch.ones_like(values, dtype=torch.bool)
    threshold = _kth(values, k)
    chosen = values < threshold
    ties = (values == threshold).nonzero().squeeze(1)
    chosen[ties[: k - int(chosen.sum())]] = True
    return chosen


def _kth(values: Tensor, k: int) -> Tensor:
    if values.device.type != "cpu":
        return values.kthvalue(k).values
    array = values.detach()
    if array.dtype == torch.bfloat16:
        array = array.float()
    # torch.kthvalue and topk are several times slower on CPU.
    return torch.from_numpy(np.partition(array.numpy(), k - 1)[k - 1 : k])[0].to(values.dtype)


def prune_smallest(
    saliency: Mapping[str, Tensor], masks: Mapping[str, Tensor], budget: int
) -> dict[str, Tensor]:
    """Prune the smallest saliencies over all tensors together until ``budget`` weights are pruned.

    Only kept weights are ranked. Of tied ones the earlier tensor, then the lower flat index, goes first.

    Args:
        saliency: Finite tensors.
        masks: What is kept now, in the order of the model's parameters.
        budget: Pruned weights afterwards, at least as many as now.

    Returns:
        New masks.

    Example:
        >>> s = {"w": torch.tensor([0.3, 0.1, 0.1, 0.9])}
        >>> prune_smallest(s, {"w": torch.ones(4, dtype=torch.bool)}, 1)["w"].tolist()
        [True, False, True, True]
    """
    kept = {name: mask.flatten() for name, mask in masks.items()}
    device = next(iter(masks.values())).device if masks else torch.device("cpu")
    parts = [saliency[name].flatten()[keep].to(device) for name, keep in kept.items()]
    already = sum(int(keep.numel()) - len(part) for keep, part in zip(kept.values(), parts, strict=True))
    gone = smallest(torch.cat(parts), budget - already) if parts else torch.empty(0, dtype=torch.bool)
    new, start = {}, 0
    for (name, keep), part in zip(kept.items(), parts, strict=True):
        flat = keep.clone()
        flat[keep] = ~gone[start : start + len(part)].to(keep.device)
        new[name] = flat.view(masks[name].shape)
        start += len(part)
    return new
