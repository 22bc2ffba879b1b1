"""Derivatives that torch does not have: which module wants them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from prunekit.errors import PrunekitError, UnsupportedError
from prunekit.network.call import Inputs, call
from prunekit.statistics.problem import Problem

_LACKING = re.compile(
    r"derivative for .* is not implemented|differentiate twice|double.?backwards?|"
    r"(not |in)compatible with \.grad\(\)|marked with @once_differentiable"
)


@contextmanager
def missing_derivatives_named(problem: Problem, inputs: Inputs) -> Iterator[None]:
    """Say which module wants a derivative that torch does not have.

    Args:
        problem: What is computed.
        inputs: Of the batch at hand.

    Raises:
        UnsupportedError: In place of torch's own error, naming the module.
    """
    try:
        yield
    except PrunekitError:
        raise
    except RuntimeError as error:  # NotImplementedError is one
        if not _LACKING.search(str(error)):
            raise
        which, remedy = "first", "Criteria without gradients (magnitude) need none"
        guilty = _guilty(problem.model, inputs, twice=False)
        if not guilty:
            which, remedy = (
                "second",
                "gradient, ggn_diagonal and empirical_fisher_diagonal need first ones only",
            )
            guilty = _guilty(problem.model, inputs, twice=True)
        if "checkpoint" in str(error).lower():
            remedy = "Use torch.utils.checkpoint.checkpoint(…, use_reentrant=False)"
        said = str(error).strip().splitlines()[0].rstrip(".")
        raise UnsupportedError(
            f"torch has no {which} derivatives of {', '.join(guilty) or 'the loss'}: {said}. {remedy}"
        ) from error


def _guilty(model: nn.Module, inputs: Inputs, twice: bool) -> list[str]:
    """The innermost modules that cannot be differentiated so often, each tried with what enters it."""
    entered: dict[nn.Module, tuple[object, object]] = {}

    def remember(module: nn.Module, args: object, kwargs: object) -> None:
        entered.setdefault(module, (args, kwargs))

    handles = [m.register_forward_pre_hook(remember, with_kwargs=True) for m in model.modules()]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a checkpoint without gradients warns
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    guilty: dict[str, str] = {}
    for name, module in reversed(list(model.named_modules())):  # those inside come before what holds them
        inside = any(other.startswith(f"{name}." if name else "") for other in guilty)
        if module in entered and not inside and not _differentiable(module, *entered[module], twice):
            kind = type(module).__name__
            guilty[name] = f"module {name!r} ({kind})" if name else f"the network's own forward ({kind})"
    return list(guilty.values())


def _differentiable(module: nn.Module, args: Any, kwargs: Any, twice: bool) -> bool:
    def fresh(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone().requires_grad_(value.is_floating_point())

    args, kwargs = tree_map(fresh, (args, kwargs))
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.requires_grad]
    sources = [*given, *(p for p in module.parameters() if p.requires_grad)]
    try:
        with torch.enable_grad():
            # Copies, since a module that works in place may not be given a leaf.
            copies = {id(t): t.clone() for t in given}
            args, kwargs = tree_map(lambda t: copies.get(id(t), t), (args, kwargs))
            outputs = tree_leaves(module(*args, **kwargs))
            ends = [t.square().sum() for t in outputs if isinstance(t, Tensor) and t.requires_grad]
            slopes = _slopes(ends, sources, twice)
            if twice:
                _slopes([g.to_dense().square().sum() for g in slopes if g.requires_grad], sources, False)
    except RuntimeError as error:
        return not _LACKING.search(str(error))
    return True


def _slopes(ends: list[Tensor], sources: list[Tensor], again: bool) -> list[Tensor]:
    if not ends or not sources:
        return []
    total = torch.stack([end.double() for end in ends]).sum()
    slopes = torch.autograd.grad(total, sources, create_graph=again, allow_unused=True)
    return [g for g in slopes if g is not None]
