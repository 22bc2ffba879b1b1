"""How far the masks of two runs agree, beside what chance gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Overlap:
    """Of the weights that two masks keep.

    Attributes:
        jaccard: Kept by both over kept by one at least; ``None`` where neither keeps any.
        chance: The same of the expected counts of two random masks that keep as many, of each layer.
    """

    jaccard: float | None
    chance: float | None


def overlaps(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[Overlap, dict[str, Overlap]]:
    """Over all tensors, and of each.

    Chance keeps as many of each tensor as the masks do: what a choice of layers alone explains is not held to be agreement.

    Args:
        a: Masks, True = kept.
        b: Masks of the same tensors.
    """
    counts = {
        name: (int(np.count_nonzero(mask & b[name])), int(mask.sum()), int(b[name].sum()), mask.size)
        for name, mask in a.items()
    }
    expected = {name: kept * other / size if size else 0.0 for name, (_, kept, other, size) in counts.items()}
    one, two = (sum(row[place] for row in counts.values()) for place in (1, 2))
    whole = _overlap(sum(row[0] for row in counts.values()), sum(expected.values()), one, two)
    layers = {
        name: _overlap(both, expected[name], kept, other) for name, (both, kept, other, _) in counts.items()
    }
    return whole, layers


def _overlap(both: int, expected: float, one: int, two: int) -> Overlap:
    if not one + two:
        return Overlap(None, None)
    return Overlap(both / (one + two - both), expected / (one + two - expected))
