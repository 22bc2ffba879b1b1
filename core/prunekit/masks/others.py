"""Notice, before it trains, that a model has other parameters than those whose zeros are kept."""

from __future__ import annotations

import functools
import itertools
import warnings
import weakref
from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from prunekit.errors import PrunekitWarning

_waiting: dict[int, Callable[[Optimizer], bool]] = {}
"""Looks that have not come to an end; a look is true when it has."""
_numbers = itertools.count()


def warn_of_others(model: nn.Module, parameters: Mapping[str, Tensor]) -> Callable[[], None]:
    """Warn before the first step where a model has other parameters by then, as after ``fully_shard``.

    Sharding calls for a new optimizer, and whoever makes one may forget that the old one was attached: so the steps of
    every optimizer are looked at, until one trains the model. Nothing is kept alive for it.

    Returns:
        What ends it.
    """
    modules, places = dict(model.named_modules(remove_duplicate=False)), []
    for name, parameter in parameters.items():
        owner, _, leaf = name.rpartition(".")
        if owner in modules:  # wrappers may give names that are no paths
            places.append((name, weakref.ref(modules[owner]), leaf, weakref.ref(parameter)))

    def look(optimizer: Optimizer) -> bool:
        now = {name: getattr(module, leaf, None) for name, at, leaf, _ in places if (module := at())}
        others = [name for name, _, _, old in places if name in now and now[name] is not old()]
        if others:
            warnings.warn(
                f"{', '.join(others)}: other parameters have taken their place since masks were attached, and their pruned "
                "weights do not stay zero: fully_shard, for one, makes new parameters. Shard the model first, "
                "then make the optimizer, then attach",
                PrunekitWarning,
                stacklevel=4,  # past torch's wrapper of `step`
            )
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return bool(others) or not now or any(id(p) in trained for p in now.values())

    _listen()
    number = next(_numbers)
    _waiting[number] = look

    def end() -> None:
        _waiting.pop(number, None)

    return end


@functools.cache
def _listen() -> None:
    """Look before every optimizer's steps. For good: torch goes through its hooks while they run, so none can go then."""
    register_optimizer_step_pre_hook(_look)


def _look(optimizer: Optimizer, *_: object) -> None:
    for number, look in list(_waiting.items()):
        if look(optimizer):
            _waiting.pop(number, None)
