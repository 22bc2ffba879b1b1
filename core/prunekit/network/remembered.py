"""What a network keeps from one pass to the next, and putting it back.

Spiking neurons, hidden states, caches and counters live in attributes and buffers of modules. Two passes are the
same function of the weights only if both start from the same state, so each starts from the one that was found.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import is_
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

_DEPTH = 4
"""How many containers and objects deep a module's attributes are followed."""

_TORCHS_OWN = frozenset(vars(nn.Module()))
"""Attributes of every module: its tables of parameters, buffers, modules and hooks."""

_ATOMS = frozenset((bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size))
_NOT_FOLLOWED = (type, FunctionType, MethodType, ModuleType, nn.Parameter)
_NO_STATE = sys.stdlib_module_names | {"torch"}
"""Where classes come from whose objects (locks, loggers, queues, handles) are no state of a network."""


class Remembered:
    """The state of some modules: attributes, buffers, and what these contain.

    Finding out that nothing has changed is cheap: objects are compared by identity, tensors by their versions.

    Args:
        modules: All modules of a model.
        parameters: Parameters that a pass may overwrite, by name; copies are kept of these.
    """

    def __init__(self, modules: Iterable[nn.Module], parameters: Mapping[str, Tensor]) -> None:
        self._mappings: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._sequences: list[tuple[list[object] | deque[object], tuple[object, ...]]] = []
        self._sets: list[tuple[set[object], frozenset[object]]] = []
        self._tensors: list[tuple[Tensor, int, Tensor]] = []
        self._buffers: list[tuple[Tensor, int, Tensor]] = []
        self._generators: list[tuple[torch.Generator, Tensor]] = []
        self._known: set[int] = set()
        for module in modules:
            self._module(module)
        self._parameters = {name: _kept(p) for name, p in parameters.items()}

    def restore(self) -> None:
        """Put back what has changed."""
        for live, kept in self._mappings:
            if len(live) != len(kept) or not all(map(is_, live.values(), kept.values())):
                live.clear()
                live.update(kept)
        for sequence, items in self._sequences:
            if len(sequence) != len(items) or not all(map(is_, sequence, items)):
                sequence.clear()
                sequence.extend(items)
        for some, members in self._sets:
            if some != members:
                some.clear()
                some.update(members)
        for tensors in self._tensors, self._buffers, self._parameters.values():
            changed = [(tensor, value) for tensor, version, value in tensors if tensor._version != version]
            if changed:
                _put_back(changed)
        for generator, state in self._generators:
            generator.set_state(state)

    def restore_values(self, parameters: bool = False) -> None:
        """The same, and values also where no version tells of a change: of buffers, and of parameters on request."""
        self.restore()
        values = [*self._buffers, *(self._parameters.values() if parameters else ())]
        _put_back((tensor, value) for tensor, _, value in values)

    def overwritten(self) -> frozenset[str]:
        """Of the parameters kept, those that have been changed in place at some time."""
        return frozenset(
            n for n, (tensor, version, _) in self._parameters.items() if tensor._version != version
        )

    def drew(self) -> bool:
        """Whether random numbers were drawn from a generator that a module holds, since the last restoring."""
        return any(not torch.equal(generator.get_state(), state) for generator, state in self._generators)

    def _module(self, module: nn.Module) -> None:
        if id(module) in self._known or (
            isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()
        ):
            return  # what a lazy module does on its first pass is to stay
        self._known.add(id(module))
        attributes = vars(module)
        if not isinstance(module, torch.jit.ScriptModule):  # whose tables are views of compiled code
            self._mappings.append((attributes, attributes.copy()))
            self._mappings += [(t, t.copy()) for t in (module._buffers, module._parameters) if t]
        for buffer in module._buffers.values():
            if buffer is not None and id(buffer) not in self._known:
                self._known.add(id(buffer))
                if not buffer.is_inference():  # such a one cannot be changed
                    self._buffers.append(_kept(buffer))
        if type(module).__module__.startswith("torch.nn.modules."):
            return  # torch's own keep no state in containers
        for key in attributes.keys() - _TORCHS_OWN:
            value = attributes[key]
            if type(value) not in _ATOMS:
                self._follow(value, _DEPTH)

    def _follow(self, value: object, depth: int) -> None:
        if type(value) in _ATOMS or isinstance(value, _NOT_FOLLOWED) or id(value) in self._known or not depth:
            return
        if isinstance(value, nn.Module):  # one that is not registered
            self._module(value)
            return
        self._known.add(id(value))
        inside: Iterable[object] = ()
        if isinstance(value, Tensor):
            if not value.is_inference():
                self._tensors.append(_kept(value))
        elif isinstance(value, torch.Generator):
            self._generators.append((value, value.get_state()))
        elif isinstance(value, dict):
            self._mappings.append((value, dict(value)))
            inside = value.values()
        elif isinstance(value, list | deque):
            self._sequences.append((value, tuple(value)))
            inside = value
        elif isinstance(value, set):
            self._sets.append((value, frozenset(value)))
        elif isinstance(value, tuple):
            if _ATOMS.issuperset(map(type, value)):
                return
            inside = value
        elif _may_be_state(value):
            self._mappings.append((vars(value), dict(vars(value))))
            inside = vars(value).values()
        for item in inside:
            self._follow(item, depth - 1)


def _may_be_state(value: object) -> bool:
    if isinstance(value, SimpleNamespace):
        return True
    return hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in _NO_STATE


def _kept(tensor: Tensor) -> tuple[Tensor, int, Tensor]:
    return tensor, tensor._version, tensor.detach().clone()


def _put_back(tensors: Iterable[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for tensor, value in tensors:
            tensor.copy_(value)


_STATES: WeakKeyDictionary[nn.Module, Remembered] = WeakKeyDictionary()

_DRAWS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether a model draws random numbers from Python or NumPy, as its first pass has shown."""

_OVERWRITES: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()
"""Which parameters a model changes in place, as far as its passes have shown."""


@contextmanager
def passes_from(model: nn.Module, state: Remembered) -> Iterator[None]:
    """Let every pass of a model begin in this state, which is restored at the end."""
    outer = _STATES.get(model)
    _STATES[model] = state
    try:
        yield
    finally:
        if outer is None:
            del _STATES[model]
        else:
            _STATES[model] = outer
        state.restore_values()
        if model in _DRAWS:  # there has been a pass
            _OVERWRITES[model] = _OVERWRITES.get(model, frozenset()) | state.overwritten()


@contextmanager
def one_pass(model: nn.Module) -> Iterator[None]:
    """A pass of a model, from the state that was found."""
    state = _STATES.get(model)
    if state is None:
        yield
        return
    state.restore()
    if model in _DRAWS:
        yield
        return
    before = _other_randomness()
    yield
    _DRAWS[model] = _other_randomness() != before


def overwrites(model: nn.Module) -> frozenset[str] | None:
    """Parameters that the model is known to change in place; ``None`` where nothing is known of it yet."""
    return _OVERWRITES.get(model)


def trust(model: nn.Module) -> None:
    """Keep no copies of a model's parameters; if it overwrites one all the same, that is refused.

    For weights that can be read again, and are too large to be copied.
    """
    _OVERWRITES.setdefault(model, frozenset())


def drew_from_its_own(model: nn.Module) -> bool:
    """Whether the last pass drew random numbers from a generator that a module holds."""
    state = _STATES.get(model)
    return state is not None and state.drew()


def draws_elsewhere(model: nn.Module) -> bool:
    """Whether the model draws random numbers from Python or NumPy."""
    return _DRAWS.get(model, False)


def _other_randomness() -> tuple[object, ...]:
    numpy: Any = np.random.get_state(legacy=False)
    return random.getstate(), numpy["state"]["key"].tobytes(), numpy["state"]["pos"]
