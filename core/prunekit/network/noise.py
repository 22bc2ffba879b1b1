"""Networks that draw random numbers in eval mode: no two of their passes are the same function of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from prunekit.errors import UnsupportedError
from prunekit.network.call import Inputs, call
from prunekit.network.remembered import draws_elsewhere, drew_from_its_own
from prunekit.network.restore import random_states

_HARMLESS: WeakSet[nn.Module] = WeakSet()
"""Models that draw random numbers, and whose outputs do not depend on them."""


@contextmanager
def refusing_noise(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Refuse a network whose outputs depend on random numbers, when it draws some inside.

    Raises:
        UnsupportedError: Naming the modules that draw.
    """
    before = random_states()
    yield
    own = drew_from_its_own(model)
    if model in _HARMLESS or not (own or draws_elsewhere(model) or _moved(before)):
        return
    one, other = call(model, inputs).detach(), call(model, inputs).detach()
    # A generator of its own begins each pass anew, and shows nothing by this.
    if not own and torch.allclose(one, other, 0, 0, equal_nan=True):
        _HARMLESS.add(model)
        return
    names = drawing(model, inputs)
    raise UnsupportedError(
        f"{', '.join(map(_named, names)) if names else 'the network'} draws random numbers in eval mode, so a statistic "
        "and a measurement would each be of a different network. Dropout must check self.training "
        "(F.dropout(x, p, training=self.training)); intended noise can be drawn once, into a buffer"
    )


def drawing(model: nn.Module, inputs: Inputs) -> list[str]:
    """The innermost modules that draw from torch's global generators, by name; none if it is somebody else."""
    names = {module: name for name, module in model.named_modules()}
    before: dict[nn.Module, Any] = {}
    drawn: list[nn.Module] = []

    def enter(module: nn.Module, args: object) -> None:
        before[module] = random_states(), len(drawn)

    def leave(module: nn.Module, args: object, output: object) -> None:
        states, count = before[module]
        if len(drawn) == count and _moved(states):
            drawn.append(module)

    handles = [m.register_forward_pre_hook(enter) for m in names]
    handles += [m.register_forward_hook(leave) for m in names]
    try:
        call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(names[module] for module in drawn))


def _moved(before: list[torch.Tensor]) -> bool:
    return not all(map(torch.equal, random_states(), before))  # which lie on the CPU


def _named(name: str) -> str:
    return f"module {name!r}" if name else "the network's forward"
