"""Chains: linear maps with functions of single numbers between them, as in a multilayer perceptron.

What follows a layer in a chain is a list of steps, which need no network around them: many deletions go through them
at once, features first, so that every function works on long rows, in pieces that a processor's cache holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunekit.network.call import Inputs, call
from prunekit.statistics.altered import ABOUT, SINGLE, Arguments, Function, Keywords

_PAIRS = 1000  # of a deletion and an example, that are worked on at a time: what a processor's caches hold
_PAIRS_ON_GPU = 1 << 20


@dataclass(frozen=True)
class Map:
    """A linear map.

    Attributes:
        weight: ``[outputs, inputs]``.
        bias: ``[outputs]``, or ``None``.
    """

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Of ``[features, deletions, examples]``."""
        flat = x.reshape(len(x), -1)
        found = (
            self.weight @ flat
            if self.bias is None
            else torch.addmm(self.bias.unsqueeze(1), self.weight, flat)
        )
        return found.view(-1, *x.shape[1:])


Step = Map | Callable[[Tensor], Tensor]


class Chain:
    """What follows one layer, for deletions of its weights.

    Args:
        x: What enters the layer, ``[examples, inputs]``.
        outputs: What leaves it.
        steps: What follows: functions of single numbers, and linear maps, one at least.
    """

    def __init__(self, x: Tensor, outputs: Tensor, steps: Sequence[Step]) -> None:
        first = next(i for i, step in enumerate(steps) if isinstance(step, Map))
        self._before, second, self._rest = steps[:first], steps[first], steps[first + 1 :]
        assert isinstance(second, Map)
        self._x, self._outputs, self._columns = x.T.contiguous(), outputs.T.contiguous(), second.weight.T
        self._active = _after(self._outputs, self._before)
        self._base = second(self._active.unsqueeze(1))
        self.examples = len(x)

    def __call__(self, units: Tensor, inputs: Tensor, changes: Tensor) -> Tensor:
        """The network's outputs, ``[weights, examples, outputs]``, with something added to single weights.

        Args:
            units: The weights' rows.
            inputs: Their columns.
            changes: What is added.
        """
        size = max(1, (_PAIRS_ON_GPU if units.is_cuda else _PAIRS) // self.examples)
        parts = [
            self._piece(
                units[start : start + size], inputs[start : start + size], changes[start : start + size]
            )
            for start in range(0, len(units), size)
        ]
        return torch.cat(parts, 1).permute(1, 2, 0)

    def _piece(self, units: Tensor, inputs: Tensor, changes: Tensor) -> Tensor:
        """Features first."""
        moved = torch.addcmul(self._outputs[units], self._x[inputs], changes.unsqueeze(1))
        change = _after(moved, self._before) - self._active[units]
        columns = self._columns[units].T.unsqueeze(2)
        return _after(torch.addcmul(self._base, columns, change.unsqueeze(0)), self._rest)


def _after(x: Tensor, steps: Sequence[Step]) -> Tensor:
    for step in steps:
        x = step(x)
    return x


def chain_after(model: nn.Module, inputs: Inputs, weight: Tensor) -> Chain | None:
    """The chain that follows a layer; ``None`` where what follows is none."""
    with _Recording(weight) as recording:
        outputs = call(model, inputs)
    x, given = recording.x, recording.outputs
    maps = any(isinstance(step, Map) for step in recording.steps)
    if recording.broken or x is None or given is None or not maps or outputs is not recording.current:
        return None
    return Chain(x, given, recording.steps)


class _Recording(TorchFunctionMode):
    """Follows what becomes of a layer's outputs.

    Args:
        weight: The layer's.

    Attributes:
        x: What entered the layer.
        outputs: A copy of what left it.
        current: What has become of that.
        steps: How.
        broken: Whether something else happened to it.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._weight = weight
        self.x: Tensor | None = None
        self.outputs: Tensor | None = None
        self.current: Tensor | None = None
        self.steps: list[Step] = []
        self.broken = False

    def __torch_function__(
        self, func: Function, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        """Call the function, and note it if it works on what is followed."""
        given = dict(kwargs or {})
        found = func(*args, **given)
        if func is F.linear and len(args) > 1 and args[1] is self._weight:
            self.broken = self.broken or self.x is not None or args[0].ndim != 2
            if not self.broken:
                self.x, self.outputs, self.current = args[0].detach().clone(), found.detach().clone(), found
            return found
        followed = self.current
        if followed is None or func in ABOUT or getattr(func, "__name__", "") == "__get__":
            return found
        if not any(value is followed for value in (*args, *given.values())):
            return found
        step = self._step(func, args, given)
        if step is None or not isinstance(found, Tensor):
            self.broken = True
        else:
            self.steps.append(step)
            self.current = found
        return found

    def _step(self, func: Function, args: Arguments, kwargs: dict[str, object]) -> Step | None:
        """What happened, as a step; ``None`` for anything that does not belong to a chain."""
        if not args or args[0] is not self.current:
            return None
        rest = [*args[1:], *kwargs.values()]
        if func is F.linear:
            settings = dict(zip(("weight", "bias"), args[1:], strict=False)) | kwargs
            weight, bias = settings["weight"], settings.get("bias")
            plain = isinstance(weight, nn.Parameter) and weight.ndim == 2 and weight is not self._weight
            return Map(weight.detach(), None if bias is None else bias.detach()) if plain else None
        if func not in SINGLE or any(isinstance(value, Tensor) for value in rest) or True in rest:
            return None  # the True is one of working in place
        return lambda x: func(x, *args[1:], **kwargs)
