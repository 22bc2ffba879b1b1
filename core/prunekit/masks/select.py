"""Exact selection of the smallest saliencies. The one place that decides ties."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_DIRECT = 1 << 12  # below this, sorting is as fast
_PIECE = 1 << 18  # values
_HALF = (torch.float16, torch.bfloat16)  # which NumPy compares slowly, or not at all


def smallest(values: Tensor, k: int) -> Tensor:
    """Mark the ``k`` smallest of a vector without NaN; of equal ones the lower index goes first.

    Finds the k-th smallest value and counts the ties at it, rather than sorting, or comparing with a
    threshold, which takes too many or too few when values repeat.

    Args:
        values: One-dimensional; infinities are allowed.
        k: How many, 0 to ``len(values)``.

    Returns:
        Bool vector with exactly ``k`` True.

    Examples:
        >>> smallest(torch.tensor([3.0, 1.0, 1.0, 1.0]), 2).tolist()
        [False, True, True, False]
    """
    if k <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    if k >= len(values):
        return torch.ones_like(values, dtype=torch.bool)
    if not values.is_cpu:
        return smallest_unseen(values, k)
    array = comparable(values)
    threshold = _kth_smallest(array, k)
    chosen = array < threshold
    ties = np.flatnonzero(array == threshold)
    chosen[ties[: k - np.count_nonzero(chosen)]] = True
    return torch.from_numpy(chosen)


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """The ``k``-th smallest (from 1) of a vector without NaN, on a CPU in linear time and almost no memory.

    A regular sample tells between which two values the k-th must lie; counting shows where it does, and
    only what lies there is looked at again. Exact whatever the sample: a poor one costs time. Several times
    faster than ``torch.kthvalue`` and ``torch.topk`` there; ``numpy.partition`` makes a copy and is slow on vectors
    that repeat one value, as saliencies of dead units do. Away from the CPU by torch's radix selection.
    Reference: Floyd & Rivest (1975), algorithm 489.
    """
    if not values.is_cpu:
        return _kth_unseen(values, k)
    return torch.tensor(_kth_smallest(comparable(values), k).item(), dtype=values.dtype, device="cpu")


def comparable(values: Tensor) -> np.ndarray:
    """Values on a CPU for NumPy, which compares and counts in a sixth of torch's time; half precision in a larger type."""
    return (values.float() if values.dtype in _HALF else values).numpy(force=True)


def _kth_smallest(values: np.ndarray, k: int) -> Any:
    shrinks = True
    while len(values) > _DIRECT and shrinks:
        n = len(values)
        sample = np.sort(values[:: n // int(n**0.6)])
        rank, margin = k / n * len(sample), 2 * len(sample) ** 0.5
        low = sample[max(0, int(rank - margin))]
        high = sample[min(len(sample) - 1, int(rank + margin) + 1)]
        upto_low = values <= low
        if k <= (passed := int(np.count_nonzero(upto_low))):
            below = values < low
            if k > np.count_nonzero(below):
                return low
            values = _picked(values, below)
        else:
            below = values < high
            if k <= np.count_nonzero(below):
                values, k = _picked(values, below > upto_low), k - passed
            else:
                upto_high = values <= high
                if k <= (passed := int(np.count_nonzero(upto_high))):
                    return high
                values, k = _picked(values, ~upto_high), k - passed
        shrinks = 2 * len(values) < n
    return np.sort(values)[k - 1]


def _picked(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """``values[where]``, five times as fast by places; a piece at a time, since a list of them takes eight bytes each."""
    pieces = range(0, len(values), _PIECE)
    places = (np.flatnonzero(where[start : start + _PIECE]) + start for start in pieces)
    return np.concatenate([values[some] for some in places])


def smallest_unseen(values: Tensor, k: int) -> Tensor:
    """The same for 0 < k < len(values), without waiting for the device, by torch's radix selection.

    On a GPU the fastest. It takes 12 bytes for each value of the smaller side.
    """
    threshold = _kth_unseen(values, k)
    chosen, equal = values < threshold, values == threshold
    return chosen | (equal & (equal.cumsum(0, dtype=torch.int32) <= k - chosen.count_nonzero()))


def _kth_unseen(values: Tensor, k: int) -> Tensor:
    n = len(values)
    if 2 * k <= n:
        return values.topk(k, largest=False, sorted=False).values.amax()
    return values.topk(n - k + 1, sorted=False).values.amin()


def cheapest(values: Tensor, budget: int, sizes: Tensor | None = None) -> Tensor:
    """Mark the smallest of a vector, as many as ``budget`` weights hold; of equal ones the lower index first.

    Args:
        values: One-dimensional, without NaN.
        budget: Weights.
        sizes: Weights of each entry; ``None`` for one each. They are taken in order up to the first that does not fit.

    Examples:
        >>> cheapest(torch.tensor([3.0, 1.0, 2.0]), 4, torch.tensor([1, 3, 2])).tolist()
        [False, True, False]
    """
    if sizes is None:
        return smallest(values, budget)
    order = values.argsort(stable=True)
    chosen = torch.zeros_like(values, dtype=torch.bool)
    chosen[order[sizes[order].cumsum(0) <= budget]] = True
    return chosen


def smallest_of_rows(values: Tensor, counts: Tensor) -> Tensor:
    """Mark the ``counts[r]`` smallest of each row without NaN; of equal ones the lower index goes first.

    Args:
        values: ``[rows, n]``.
        counts: ``[rows]``, 0 to n.

    Examples:
        >>> smallest_of_rows(torch.tensor([[3.0, 1.0, 1.0], [0.0, 2.0, 1.0]]), torch.tensor([1, 2])).tolist()
        [[False, True, False], [True, False, True]]
    """
    if not values.is_cpu:
        return _by_sorting(values, counts)
    chosen = torch.zeros_like(values, dtype=torch.bool)
    for count in sorted(set(counts.tolist())):  # rows of one layer differ by one at most
        rows = (counts == count).nonzero().squeeze(1)
        some = values[rows]
        if count == 0 or count == values.shape[1]:
            chosen[rows] = count > 0
            continue
        # Of a row NumPy finds the k-th three times as fast as torch, and 30 times as fast as it sorts.
        threshold = torch.from_numpy(np.partition(some.numpy(), count - 1, axis=1)[:, count - 1 : count])
        smaller = some <= threshold
        tied = (smaller.sum(1) != count).nonzero().squeeze(1)
        if len(tied):
            smaller[tied] = _by_sorting(some[tied], counts[rows[tied]])
        chosen[rows] = smaller
    return chosen


def _by_sorting(values: Tensor, counts: Tensor) -> Tensor:
    order = values.argsort(dim=1, stable=True)
    first = torch.arange(values.shape[1], device=values.device) < counts.unsqueeze(1)
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, first)
