"""Along which axis of a weight its inputs lie: known from its layer's class, or seen in use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from prunekit.masks.memory import memory, places
from prunekit.masks.roles import CONVOLUTION, EMBEDDINGS, RECURRENT, is_conv1d
from prunekit.masks.weights import Layer

Axes: TypeAlias = tuple[int | None, int | None]
"""The axis of a weight that runs over what enters the layer, and the one over what leaves it."""

_UNKNOWN: Axes = (None, None)
_SEEN: WeakKeyDictionary[nn.Module, dict[str, Axes]] = WeakKeyDictionary()
"""What was seen of a model's weights in use, by name."""


def layers_of(model: nn.Module, parameters: Mapping[str, Tensor]) -> list[Layer]:
    """The layers that some parameters of a model are, in their order."""
    known, seen = _known(model), _SEEN.get(model, {})
    layers, start = [], 0
    for name, p in parameters.items():
        inputs, outputs = known.get(memory(p), seen.get(name, _UNKNOWN))
        layers.append(Layer(name, tuple(p.shape), inputs, start, outputs))
        start += p.numel()
    return layers


def unknown_axes(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of some weights whose axes no class tells and no use has shown."""
    known, seen = _known(model), _SEEN.get(model, {})
    return {n: p for n, p in parameters.items() if p.ndim > 1 and memory(p) not in known and n not in seen}


def remember_axes(model: nn.Module, seen: Mapping[str, Axes]) -> None:
    """Keep what was seen of some weights in use, while the model lives."""
    _SEEN.setdefault(model, {}).update(seen)


def _known(model: nn.Module) -> dict[object, Axes]:
    """What the classes of the layers tell, by the weight's memory."""
    known: dict[object, Axes] = {}
    for (module, key, _), parameter in places(model):
        axes = _of_class(module, key)
        if axes is not None and known.get(memory(parameter), _UNKNOWN) == _UNKNOWN:
            known[memory(parameter)] = axes
    return known


def _of_class(module: nn.Module, key: str) -> Axes | None:
    """The axes of a weight of a layer that multiplies as its class does; a forward of its own may do otherwise."""
    kind = type(module)
    if isinstance(module, CONVOLUTION):
        return (0, 1) if module.transposed else (1, 0)
    if isinstance(module, nn.Linear):
        return (1, 0) if kind.forward is nn.Linear.forward else None
    if isinstance(module, (nn.MultiheadAttention, *RECURRENT)):
        return 1, 0
    if isinstance(module, EMBEDDINGS):
        return _UNKNOWN
    return (0, 1) if is_conv1d(kind, "transformers.") else None
