"""A run as observers see it: plain data and numpy copies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from prunekit.records import RunView
from prunekit.runs.state import State


def refreshed(view: RunView, state: State) -> RunView:
    """The same view, brought up to the state."""
    view.metrics = {name: dict(metrics) for name, metrics in state.metrics.items()}
    view.steps = list(state.steps)
    view.attempts = list(state.attempts)
    view.warnings = list(state.warnings)
    view.stopped = state.stopped
    view.resumptions = [dict(resumption) for resumption in state.resumptions]
    view.history = {name: [dict(row) for row in rows] for name, rows in state.history.items()}
    view.masks = {name: _read_only(m) for name, m in state.masks.items()}
    view.examples = None if state.examples is None else state.examples.numpy().copy()
    view.saliencies = _parts(state.saliency, view.shapes)
    view.weights = _Weights(state.weights)
    view.probes = list(state.probes)
    return view


def _parts(flat: Tensor | None, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray] | None:
    """A vector over all prunable weights, cut into tensors."""
    if flat is None:
        return None
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = np.split(_array(flat), ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


class _Weights(Mapping[str, Mapping[str, np.ndarray]]):
    """Numpy copies, made when asked for."""

    def __init__(self, phases: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._phases = dict(phases)

    def __getitem__(self, phase: str) -> dict[str, np.ndarray]:
        return {name: _array(t) for name, t in self._phases[phase].items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._phases)

    def __len__(self) -> int:
        return len(self._phases)


def _read_only(mask: Tensor) -> np.ndarray:
    """A mask's own memory, which nobody changes: there are as many as weights, and a copy of them at every step."""
    array = mask.numpy().view()
    array.flags.writeable = False
    return array


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # numpy has no bfloat16; float32 holds every one of its values
        tensor = tensor.float()
    return tensor.numpy().copy()
