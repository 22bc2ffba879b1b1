"""Parameters and the memory that they lie in: two over one memory are one weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from torch import Tensor, nn

from prunekit.errors import SpecError

Place: TypeAlias = tuple[nn.Module, str, str]
"""A module, the key under which it holds a parameter, and the parameter's name in the model."""


def memory(tensor: Tensor) -> object:
    """The same for two tensors just where they are the same numbers in the same memory."""
    try:
        pointer = tensor.data_ptr()
    except (RuntimeError, ValueError):  # not made yet, or not strided: nothing else lies over it
        pointer = 0
    return (pointer, tensor.dtype, tensor.shape, tensor.stride()) if pointer else id(tensor)


def places(model: nn.Module) -> Iterator[tuple[Place, nn.Parameter]]:
    """Every place of a model that holds a parameter, shared ones as often as they are held."""
    for prefix, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                yield (module, key, f"{prefix}.{key}" if prefix else key), parameter


def parameters_once(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters in ``named_parameters()`` order; those over one memory once, under the first name."""
    homes: dict[object, str] = {}
    once: dict[str, nn.Parameter] = {}
    for (_, _, name), parameter in places(model):
        if homes.setdefault(memory(parameter), name) == name:
            once[name] = parameter
    return once


def tie(model: nn.Module) -> None:
    """Let places whose parameters lie over one memory hold the first of them, as for weights that are tied by name."""
    homes: dict[object, nn.Parameter] = {}
    for (module, key, _), parameter in list(places(model)):
        first = homes.setdefault(memory(parameter), parameter)
        if first is not parameter:
            module._parameters[key] = first


def refuse_overlaps(parameters: Iterable[tuple[str, Tensor]], chosen: Iterable[str]) -> None:
    """Refuse parameters of which another one holds a part, or the same numbers in another shape.

    Args:
        parameters: All of a model, those over one memory once.
        chosen: Names of those that matter.

    Raises:
        SpecError: Naming two.
    """
    wanted = set(chosen)
    spans = sorted((span, name) for name, p in parameters if p.numel() and (span := _span(p)) is not None)
    end, owner = 0, ""
    for (start, stop), name in spans:
        if start < end and wanted & {name, owner}:
            raise SpecError(
                f"prune.prunable: {owner} and {name} share part of their memory, or share it in different shapes, so a zero "
                "in one changes the other; make one of them a copy (.clone()), or exclude both"
            )
        if stop > end:
            end, owner = stop, name


def _span(tensor: Tensor) -> tuple[int, int] | None:
    """The bytes that a tensor reaches over, first and one past the last."""
    try:
        start = tensor.data_ptr()
    except (RuntimeError, ValueError):
        return None
    if not start:
        return None
    reach = sum((n - 1) * abs(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return start, start + reach * tensor.element_size()
