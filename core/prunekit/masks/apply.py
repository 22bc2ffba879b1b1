"""Put masks on a model, once or after every optimizer step. No wrapper, no extra state in the model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.errors import PrunekitWarning, SpecError


def zero(parameters: Mapping[str, Tensor], dropped: Mapping[str, Tensor]) -> None:
    """Set weights to +0 where ``dropped`` is True. A fill, not a product: ``inf * 0`` is NaN."""
    with torch.no_grad():
        for name, drop in dropped.items():
            parameters[name].masked_fill_(drop, 0.0)


def checked(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of the masks, after checking names, shapes and types.

    A name may be any alias of a tied parameter.

    Raises:
        SpecError: Naming every mask that does not fit.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    problems = []
    for name, mask in masks.items():
        if name not in parameters:
            problems.append(f"mask {name!r}: the model has no such parameter")
        elif mask.dtype != torch.bool:
            problems.append(f"mask {name!r}: is {mask.dtype}, and would have to be torch.bool, True = kept")
        elif mask.shape != parameters[name].shape:
            problems.append(
                f"mask {name!r}: has shape {tuple(mask.shape)}, the parameter {tuple(parameters[name].shape)}"
            )
    if problems:
        raise SpecError(problems)
    return {name: parameters[name] for name in masks}


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero the masked weights of a model in place, once.

    Args:
        model: Any module that has the parameters named.
        masks: Bool tensors or arrays in the parameters' shapes, ``True`` = kept.

    Raises:
        SpecError: If a mask does not fit; the model is then unchanged.
    """
    masks = {name: torch.as_tensor(mask) for name, mask in masks.items()}
    parameters = checked(model, masks)
    zero(parameters, {name: ~mask.to(parameters[name].device) for name, mask in masks.items()})


class Attachment:
    """Keeps pruned weights zero after every step of an optimizer, until :meth:`remove`.

    The weights are zeroed after the step, so neither momentum nor weight decay brings one back, and no
    state of the optimizer is touched.
    """

    def __init__(
        self, optimizer: Optimizer, parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> None:
        self._parameters = dict(parameters)
        self._dropped = {name: ~mask.to(parameters[name].device) for name, mask in masks.items()}
        zero(self._parameters, self._dropped)
        self._handle = optimizer.register_step_post_hook(self._after)

    def _after(self, *_: Any) -> None:
        for name, drop in self._dropped.items():
            device = self._parameters[name].device
            if drop.device != device:  # the model has been moved since
                self._dropped[name] = drop.to(device)
        zero(self._parameters, self._dropped)

    def remove(self) -> None:
        """Stop; the weights stay as they are."""
        self._handle.remove()


def attach(model: nn.Module, optimizer: Optimizer, masks: Mapping[str, Tensor]) -> Attachment:
    """Keep a model's masked weights at zero through an optimizer's steps; zeroes them once at the start."""
    parameters = checked(model, masks)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    absent = [name for name, p in parameters.items() if id(p) not in held]
    if absent:
        warnings.warn(
            f"the optimizer does not hold {', '.join(absent)}; attach the optimizer that trains this model",
            PrunekitWarning,
            stacklevel=3,
        )
    return Attachment(optimizer, parameters, masks)
