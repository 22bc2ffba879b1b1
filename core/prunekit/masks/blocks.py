"""The blocks of a transformer: stacks of modules of one class."""

from __future__ import annotations

from torch import nn

from prunekit.errors import SpecError

_MATRICES = 2
"""A block has as many at least: a stack of plain layers is none of blocks."""


def block_names(model: nn.Module) -> list[str]:
    """Names of the blocks, of all stacks that lie in no other one: encoder and decoder, each stage of a hierarchy.

    Raises:
        SpecError: If there is no stack.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(f"{name}.".startswith(f"{block}.") for block in found)
        if inside or not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        children = dict(module.named_children())
        if len({type(child) for child in children.values()}) == 1 and all(map(_is_block, children.values())):
            found += [f"{name}.{key}" if name else key for key in children]
    if not found:
        raise SpecError(
            "prune.prunable: preset transformer_blocks: the model has no stack of blocks (a ModuleList or Sequential of "
            "modules of one class with several matrices each); name the weights under include"
        )
    return found


def _is_block(module: nn.Module) -> bool:
    return sum(p.ndim >= 2 for p in module.parameters()) >= _MATRICES and any(True for _ in module.children())
