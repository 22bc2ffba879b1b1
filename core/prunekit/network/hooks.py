"""Hooks that stand between a loss and its derivative: they see gradients on their way and may change them.

Clipping, reversing or scaling gradients in hooks is for training. A statistic is of the loss as it is, so networks
run without such hooks, and a warning says so.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from prunekit.errors import PrunekitWarning

_TABLES = ("_backward_hooks", "_backward_pre_hooks")
_GLOBAL: Any = nn.modules.module
_REGISTER = {Tensor.register_hook, Tensor.register_post_accumulate_grad_hook}

_REGISTERING: WeakSet[nn.Module] = WeakSet()
"""Models that register hooks on gradients while they run."""

_TOLD: WeakSet[nn.Module] = WeakSet()


class Unhooked(TorchFunctionMode):
    """Within it, a network that registers hooks on gradients while it runs registers none."""

    skipped = False
    """Whether there was one."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Call the function, unless it registers a hook."""
        if func in _REGISTER:
            self.skipped = True
            return RemovableHandle(OrderedDict())
        return func(*args, **(kwargs or {}))


def note_hooks(model: nn.Module, mode: Unhooked) -> None:
    """Remember of a model that it registers hooks while it runs."""
    if mode.skipped and model not in _REGISTERING:
        _REGISTERING.add(model)
        _tell(model, "tensors inside the network")


def unhooked(model: nn.Module) -> AbstractContextManager[object]:
    """Run a model that registers hooks while it runs, without them; no cost for others."""
    return Unhooked() if model in _REGISTERING and torch.is_grad_enabled() else nullcontext()


@contextmanager
def without_gradient_hooks(
    model: nn.Module, modules: Iterable[tuple[str, nn.Module]], parameters: Mapping[str, Tensor]
) -> Iterator[None]:
    """Set aside the hooks on gradients that parameters and modules have; they are back afterwards.

    Args:
        model: Which is warned of, once.
        modules: All of its modules, by name.
        parameters: All of its parameters, by name.
    """
    tables = [(name, vars(module).get(table)) for name, module in modules for table in _TABLES]
    tables += [("every module", getattr(_GLOBAL, f"_global{table}", None)) for table in _TABLES]
    emptied = [(name, table, dict(table)) for name, table in tables if table]
    of_parameters = [(name, p, p._backward_hooks) for name, p in parameters.items() if p._backward_hooks]
    names = [*(name for name, *_ in of_parameters), *(name or "the network" for name, *_ in emptied)]
    if names:
        _tell(model, ", ".join(dict.fromkeys(names)))
    try:
        for _, table, _ in emptied:
            table.clear()
        for _, parameter, _ in of_parameters:
            parameter._backward_hooks = None
        yield
    finally:
        for _, table, content in emptied:
            table.update(content)
        for _, parameter, hooks in of_parameters:
            parameter._backward_hooks = hooks


def _tell(model: nn.Module, where: str) -> None:
    if model not in _TOLD:
        _TOLD.add(model)
        warnings.warn(
            f"hooks on gradients ({where}) do not run while prunekit works: statistics are of the loss as it is, "
            "and a hook could change its gradient",
            PrunekitWarning,
            stacklevel=3,
        )
