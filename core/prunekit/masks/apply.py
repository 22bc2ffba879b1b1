"""Put masks on a model, once. No wrapper, no extra state in the model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunekit.errors import SpecError
from prunekit.masks.fill import fill_
from prunekit.masks.spread import here, part_of


def zero(parameters: Mapping[str, Tensor], dropped: Mapping[str, Tensor]) -> None:
    """Set weights to +0 where ``dropped`` is True. A fill, not a product: ``inf * 0`` is NaN.

    Of parameters that are spread over processes, ``dropped`` is what belongs to the part in this one.
    """
    with torch.no_grad():
        for name, drop in dropped.items():
            fill_(here(parameters[name]), drop)


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
            problems.append(f"mask {name!r}: is {mask.dtype}; it must be torch.bool, True = kept")
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
        masks: Bool tensors or arrays in the parameters' shapes, ``True`` = kept; the whole ones also where the parameters
            are spread over processes (``fully_shard``), all of which call this.

    Raises:
        SpecError: If a mask does not fit; the model is then unchanged.
    """
    masks = {name: torch.as_tensor(mask) for name, mask in masks.items()}
    parameters = checked(model, masks)
    zero(parameters, {name: ~part_of(mask, parameters[name], name) for name, mask in masks.items()})
