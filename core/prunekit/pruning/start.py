"""What is pruned already when pruning starts: by masks that are given, or because it is zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from prunekit.errors import DeviceError, SpecError
from prunekit.masks.apply import checked
from prunekit.masks.apportion import pruned_count
from prunekit.masks.memory import memory

Zeros: TypeAlias = Literal["pruned", "free"]
"""What weights that are exactly zero at the start are: pruned, or as free as any other."""


def fitting(
    model: nn.Module, parameters: Mapping[str, Tensor], given: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Masks of the prunable parameters from those that a user gives; what is not given is kept.

    Args:
        model: Whose they are.
        parameters: The prunable ones, by their first names.
        given: By any name of a parameter.

    Raises:
        SpecError: Naming the masks that do not fit, or are not of prunable weights.
        DeviceError: If a prunable parameter has no values.
    """
    absent = [name for name, p in parameters.items() if p.is_meta]
    if absent:
        raise DeviceError(
            f"{', '.join(absent)}: on the device meta, where nothing has a value. The model, its inputs and its targets "
            "must be on one device: move the model, and load its weights"
        )
    masks = {name: torch.ones(p.shape, dtype=torch.bool, device=p.device) for name, p in parameters.items()}
    first = {memory(p): name for name, p in parameters.items()}
    tensors = {name: torch.as_tensor(mask) for name, mask in (given or {}).items()}
    owners = checked(model, tensors)
    strangers = [name for name, p in owners.items() if memory(p) not in first]
    if strangers:
        raise SpecError(
            [
                f"mask {name!r}: is not a prunable parameter; there are {', '.join(parameters)}"
                for name in strangers
            ]
        )
    for name, mask in tensors.items():
        own = first[memory(owners[name])]
        masks[own] = (masks[own] & mask.to(masks[own].device)).contiguous()
    return masks


def without_zeros(masks: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks that keep nothing that is exactly zero."""
    return {name: (mask & (parameters[name].detach() != 0)).contiguous() for name, mask in masks.items()}


def steps_without_effect(levels: Sequence[float], gone: int, total: int) -> int:
    """How many steps of a schedule have nothing to do, since more is pruned at the start than they ask for.

    Raises:
        SpecError: If that holds for the last: it would have to bring weights back.
    """
    below = sum(pruned_count(level, total) < gone for level in levels)
    if below and below == len(levels):
        raise SpecError(
            f"prune.scheduler: the schedule ends at sparsity {levels[-1]:.6g}, but {gone} of {total} weights "
            f"({gone / total:.6g}) are pruned or zero already; go further, or let zeros be free (zeros: free)"
        )
    return below
