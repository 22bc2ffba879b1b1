"""What runs of one process have in common, made once: the data, and what is measured of a dense network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from prunekit.pruning.first import FirstSteps
from prunekit.records import Plain, Row

T = TypeVar("T")
_KINDS = {"data": 1, "metrics": 64, "first steps": 1}
"""How many of each are kept, the last ones: data and statistics may be large."""
_OF_NO_CONSEQUENCE = ("name", "recorders", "probes", "finetune", "folder", "train")
"""What has no effect on a dense network whose weights are known."""
_LATER = ("criterion", "selector", "scheduler")
"""What has none on the examples of the first step."""


class Shared:
    """Kept between runs, as long as none fails: one that fails may have changed what it was lent."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, object]] = {}

    def once(self, kind: str, key: str, make: Callable[[], T]) -> T:
        """What was made under this key, or make it."""
        kept: dict[str, T] = self._kept.setdefault(kind, {})  # type: ignore[assignment]  # of this kind, all are T
        if key not in kept:
            made = make()
            kept[key] = made
        kept[key] = kept.pop(key)  # the last again
        while len(kept) > _KINDS[kind]:
            del kept[next(iter(kept))]
        return kept[key]

    def first_steps(self, key: str) -> FirstSteps:
        """First steps from the network of this key."""
        return self.once("first steps", key, FirstSteps)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()


def dense_key(bound: Row, more: Sequence[Plain], weights: Mapping[str, Tensor]) -> str:
    """Of a dense network by its weights, with all that decides what is measured of it and on which examples.

    Args:
        bound: The run's spec, nothing left open.
        more: What else it rests on: its files' digests, its device.
        weights: Parameters and buffers.
    """
    sums = hashlib.sha256()
    for name, tensor in weights.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sums.update(f"{name} {flat.dtype} {tuple(tensor.shape)};".encode())
        sums.update(flat.view(torch.uint8).numpy().data)
    values = {key: value for key, value in bound.items() if key not in _OF_NO_CONSEQUENCE}
    if values.get("prune"):
        values["prune"] = {key: value for key, value in values["prune"].items() if key not in _LATER}
    return json.dumps([values, *more, sums.hexdigest()], sort_keys=True)
