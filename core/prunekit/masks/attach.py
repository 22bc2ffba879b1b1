"""Keep pruned weights at zero while an optimizer trains, whatever the optimizer is wrapped in."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import MethodType
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.errors import PrunekitWarning, SpecError
from prunekit.masks.apply import checked, zero
from prunekit.masks.others import warn_of_others
from prunekit.masks.spread import here, part_of

_SENTINELS = 32
"""Pruned weights of each parameter that are looked at once per backward pass: far less than a mask reads."""

_OF_EVERY_OPTIMIZER = frozenset(dir(Optimizer)) - {"step"}
"""Methods that leave weights alone by torch's own contract, overridden or not (``zero_grad``, ``state_dict``, …)."""


class Attachment:
    """Keeps pruned weights zero after every step of an optimizer, until :meth:`remove`.

    The weights are zeroed after the step, so neither momentum nor weight decay brings one back, and no
    state of the optimizer is touched.
    """

    def __init__(
        self, optimizer: object, parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> None:
        self._parameters = dict(parameters)
        self._dropped = {name: ~part_of(mask, parameters[name], name) for name, mask in masks.items()}
        self._undo: list[Callable[[], None]] = []
        self._active = True
        try:
            for part in _with_inner(optimizer):
                self._follow(part)
        except (AttributeError, TypeError) as error:
            self.remove()
            raise SpecError(
                f"{type(optimizer).__name__} cannot be followed through its steps ({error}); "
                "attach the optimizer that it wraps"
            ) from error
        self._zero()

    def remove(self) -> None:
        """Stop; the weights stay as they are."""
        self._active = False
        while self._undo:
            self._undo.pop()()

    def watch(self, model: nn.Module) -> None:
        """Warn, once, where pruned weights are found to be back: something else than the attached optimizer trains.

        A few pruned weights of each parameter are read whenever gradients have been taken. Parameters that take the
        place of these are told before the first step.
        """
        self._undo.append(warn_of_others(model, self._parameters))
        spread = {}
        for name, drop in self._dropped.items():
            gone = drop.flatten().nonzero().squeeze(1)
            spread[name] = gone[:: max(1, len(gone) // _SENTINELS)]
        trained = next((p for n, p in self._parameters.items() if p.requires_grad and len(spread[n])), None)
        if trained is None:
            return

        def look(_: Tensor) -> None:
            if trained.is_cuda and torch.cuda.is_current_stream_capturing():
                return
            back = [n for n, at in spread.items() if _any_at(self._parameters[n], at)]
            if back:
                handle.remove()
                warnings.warn(
                    f"pruned weights of {', '.join(back)} are no longer zero: something other than the attached optimizer's "
                    "methods changed them (another optimizer, a state that was loaded, an optimizer that calls the model "
                    "within its step). Attach every optimizer that trains the model, or apply the masks again with "
                    "pk.apply_masks(model, masks)",
                    PrunekitWarning,
                    stacklevel=2,
                )

        handle = trained.register_post_accumulate_grad_hook(look)  # type: ignore[no-untyped-call]
        self._undo.append(handle.remove)

    def _follow(self, part: object) -> None:
        """Zero after everything that this optimizer, or wrapper, may do to the weights."""
        hooked = False
        if _calls_hooks(part):
            hooked = True
            self._undo.append(part.register_step_post_hook(lambda *_: self._zero()).remove)
        for name in _methods(part):
            if name != "step" or not hooked:
                self._wrap(part, name)

    def _wrap(self, part: object, name: str) -> None:
        """Put a method on the object that does what its own does, and zeroes afterwards."""
        original, before = getattr(part, name), vars(part).get(name)

        @functools.wraps(original)  # with the marks that learning rate schedulers leave on a step
        def followed(_: object, *args: object, **kwargs: object) -> object:
            result = original(*args, **kwargs)
            self._zero()
            return result

        ours = MethodType(followed, part)  # bound, because schedulers also reach for `step.__func__`
        setattr(part, name, ours)

        def undo() -> None:
            if vars(part).get(name) is not ours:  # somebody wrapped ours, which now does nothing of its own
                return
            if before is None:
                delattr(part, name)
            else:
                setattr(part, name, before)

        self._undo.append(undo)

    def _zero(self) -> None:
        if not self._active:
            return
        for name, drop in self._dropped.items():
            device = self._parameters[name].device
            if drop.device != device:  # the model has been moved since
                self._dropped[name] = drop.to(device)
        zero(self._parameters, self._dropped)


def attach(model: nn.Module, optimizer: object, masks: Mapping[str, Tensor]) -> Attachment:
    """Keep a model's masked weights at zero through an optimizer's steps; zeroes them once at the start.

    Steps are seen through torch's own hooks, also those of optimizers that the given one holds. Where a class
    adds methods of its own (the two half steps of sharpness-aware minimization, the ``train`` and ``eval`` of
    schedule-free optimizers), the weights are zeroed after each of these too. A model that ``fully_shard`` spreads over
    processes is sharded before its optimizer is made, and both before this; all processes then call it.

    Args:
        model: The model that is trained.
        optimizer: The optimizer that trains it, or what wraps that.
        masks: Bool tensors or arrays in the parameters' shapes, ``True`` = kept; the whole ones also of a model that is
            spread over processes.

    Returns:
        A handle with ``.remove()``.

    Raises:
        SpecError: If a mask does not fit, or nothing could be seen of the optimizer's steps.
    """
    masks = {name: torch.as_tensor(mask) for name, mask in masks.items()}
    parameters = checked(model, masks)
    parts = list(_with_inner(optimizer))
    if not any(_calls_hooks(part) or _methods(part) for part in parts):
        raise SpecError(
            f"optimizer: {type(optimizer).__name__} has no method `step` and holds no optimizer that has one; "
            "give the torch.optim.Optimizer that trains the model"
        )
    groups = [group for part in parts for group in getattr(part, "param_groups", ())]
    held = {id(p) for group in groups for p in group["params"]}
    absent = [name for name, p in parameters.items() if id(p) not in held]
    if absent:
        warnings.warn(
            f"the optimizer does not hold {', '.join(absent)}; attach the optimizer that trains this model",
            PrunekitWarning,
            stacklevel=3,
        )
    attachment = Attachment(optimizer, parameters, masks)
    attachment.watch(model)
    return attachment


def _with_inner(optimizer: object) -> Iterator[object]:
    """An optimizer and those that it holds in its attributes, at any depth, each once."""
    waiting, seen = [optimizer], set()
    while waiting:
        part = waiting.pop(0)
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        for value in getattr(part, "__dict__", {}).values():
            several = value.values() if isinstance(value, dict) else value
            members = several if isinstance(value, dict | list | tuple) else (value,)
            waiting += [member for member in members if isinstance(member, Optimizer)]


def _calls_hooks(part: object) -> TypeGuard[Optimizer]:
    """Whether torch itself calls the hooks of an optimizer's ``step``: not where ``Optimizer.__init__`` never ran."""
    own = vars(part).get("step") if hasattr(part, "__dict__") else None
    return (
        isinstance(part, Optimizer)
        and "_optimizer_step_post_hooks" in vars(part)
        and getattr(type(part).step, "hooked", False)
        and (own is None or hasattr(own, "_wrapped_by_lr_sched"))  # schedulers wrap the class's step
    )


def _methods(part: object) -> list[str]:
    """Public methods that may change weights: ``step``, and what a class has beside those of every optimizer."""
    return [
        name
        for name in dir(type(part))
        if not name.startswith("_")
        and name not in _OF_EVERY_OPTIMIZER
        and inspect.isfunction(inspect.getattr_static(type(part), name))
    ]


def _any_at(parameter: Tensor, indices: Tensor) -> bool:
    if not len(indices):
        return False
    return bool(here(parameter.detach()).flatten()[indices.to(parameter.device)].any())
