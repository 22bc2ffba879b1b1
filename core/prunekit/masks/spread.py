"""Parameters that are spread over processes (``DTensor``, as ``fully_shard`` makes them): what of them lies in this one."""

from __future__ import annotations

import sys
from typing import Any, TypeGuard

from torch import Tensor

from prunekit.errors import SpecError


def is_spread(tensor: Tensor) -> TypeGuard[Any]:
    """Whether a tensor is a ``DTensor``.

    Where nothing has imported their module nothing is one; importing it takes half a second.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def here(tensor: Tensor) -> Tensor:
    """The part in this process, whose memory is the tensor's own; of an ordinary tensor, all of it."""
    part: Tensor = tensor.to_local() if is_spread(tensor) else tensor
    return part


def part_of(mask: Tensor, parameter: Tensor, name: str) -> Tensor:
    """The part of a whole mask that belongs to what this process has of a parameter, on its device.

    Every process has the same whole mask, so nothing is sent; a mask that is spread itself is put together first, by
    all processes.

    Raises:
        SpecError: If torch cannot cut a tensor as the parameter is.
    """
    if is_spread(mask):
        mask = mask.full_tensor()
    mask = mask.to(parameter.device)
    if not is_spread(parameter):
        return mask
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = parameter.device_mesh, parameter.placements
    try:
        whole = DTensor.from_local(mask, mesh, [Replicate()] * mesh.ndim, run_check=False)
        part: Tensor = whole.redistribute(placements=placements).to_local()
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise _uncut(name, parameter, str(error)) from error
    if part.shape != here(parameter).shape:
        found = f"its part here has shape {tuple(here(parameter).shape)}, the mask's {tuple(part.shape)}"
        raise _uncut(name, parameter, found)
    return part


def _uncut(name: str, parameter: Any, why: str) -> SpecError:
    return SpecError(
        f"mask {name!r}: cannot be cut as the parameter is, {parameter.placements} over {parameter.device_mesh}: {why}"
    )
