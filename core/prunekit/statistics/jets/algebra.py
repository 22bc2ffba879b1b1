"""Jets in sums, products, and whatever is linear."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_any, tree_map

from prunekit.statistics.jets.jet import (
    RULES,
    VIEWS,
    Arguments,
    Jet,
    Keywords,
    NoJetError,
    Rule,
    aten,
    begun,
    coefficients,
    made,
    named,
    note_view,
    order_of,
)

_FILLS = {aten.constant_pad_nd: 2, aten.masked_fill: 2}
"""Where a number stands that is put in place of elements: it does not move."""


def constant(func: OpOverload, args: Arguments, kwargs: Keywords) -> object:
    """What has no derivative, or none but zero, and what torch takes for a constant."""
    return func(*begun(args), **begun(kwargs))


def linear(func: OpOverload, args: Arguments, kwargs: Keywords) -> object:
    """What is linear in all of its tensors of numbers together; numbers beside them (a fill) count once."""
    order = order_of((args, kwargs))
    if func.is_view:
        tree_map(note_view, args)
    start = func(*begun(args), **begun(kwargs))
    parts = [
        func(*_part(func, args, k), **tree_map(partial(_of_order, k=k), kwargs))
        if tree_any(partial(_moves, k=k), (args, kwargs))
        else None
        for k in range(1, order + 1)
    ]
    if isinstance(start, Tensor):
        outputs = [made([start, *parts])]
    else:  # several, such as those of a split
        each = zip(*(part or [None] * len(start) for part in parts), strict=True)
        outputs = [made([first, *rest]) for first, rest in zip(start, each, strict=True)]
    if func.is_view:
        tree_map(note_view, outputs)
    return outputs[0] if isinstance(start, Tensor) else outputs


def _moves(argument: object, k: int) -> bool:
    return isinstance(argument, Jet) and argument.coefficients[k] is not None


def _part(func: OpOverload, args: Arguments, k: int) -> Arguments:
    parts = [tree_map(partial(_of_order, k=k), arg) for arg in args]
    place = _FILLS.get(func.overloadpacket)
    if place is not None and len(parts) > place and isinstance(parts[place], int | float):
        parts[place] = 0
    return parts


def _of_order(argument: object, k: int) -> object:
    """The k-th coefficient of an argument, zero for a constant; indices and conditions as they are."""
    if isinstance(argument, Jet):
        value = argument.coefficients[k]
        return torch.zeros_like(argument.first) if value is None else value
    if isinstance(argument, Tensor) and argument.is_floating_point():
        return torch.zeros_like(argument)
    return argument


def sums(func: OpOverload, args: Arguments, kwargs: Keywords) -> object:
    """``a + alpha·b`` or ``a − alpha·b``."""
    left, right, *_ = args
    sign = -1 if func.overloadpacket is aten.sub else 1
    alpha = kwargs.get("alpha", args[2] if len(args) > 2 else 1)
    if func.overloadpacket is aten.rsub:
        left, right, sign = right, left, -1
    assert isinstance(alpha, int | float)
    order = order_of((left, right))
    lefts, rights = (
        coefficients(side, order) if isinstance(side, Tensor) else [None] * (order + 1)
        for side in (left, right)
    )
    values: list[Tensor | None] = [func(*begun(args), **kwargs)]
    for a, b in zip(lefts[1 : order + 1], rights[1 : order + 1], strict=True):
        if a is None or b is None:
            values.append(a if b is None else b * (sign * alpha))
        else:
            values.append(torch.add(a, b, alpha=sign * alpha))
    return made(values)


def bilinear(func: OpOverload, args: Arguments, kwargs: Keywords) -> object:
    """``c_k = Σ a_i·b_(k−i)`` for what is linear in each of its first two arguments; a third may be added."""
    left, right, *rest = args
    order = order_of((left, right))
    if not (isinstance(left, Jet) and isinstance(right, Jet)):
        values: list[Tensor | None] = []
        for k in range(order + 1):
            a, b = (side.coefficients[k] if isinstance(side, Jet) else side for side in (left, right))
            values.append(None if a is None or b is None else func(a, b, *rest, **kwargs))
        return made(values)
    values = []
    for k in range(order + 1):
        total: Tensor | None = None
        for i in range(k + 1):
            a, b = left.coefficients[i], right.coefficients[k - i]
            if a is not None and b is not None:
                product = func(a, b, *rest, **kwargs)
                total = product if total is None else total.add_(product)
        values.append(total)
    return made(values)


def convolution(func: OpOverload, args: Arguments, kwargs: Keywords) -> object:
    """A product, and a bias."""
    inputs, weight, bias, *rest = args
    if isinstance(inputs, Jet) or isinstance(weight, Jet):
        outputs = bilinear(func, [inputs, weight, None, *rest], kwargs)
    else:
        outputs = func(inputs, weight, None, *rest, **kwargs)
    assert isinstance(outputs, Tensor)
    return outputs if bias is None else outputs + by_channel(bias, outputs)


def _with_product(
    product: Callable[[Tensor, Tensor], Tensor],
    bias: Tensor,
    left: Tensor,
    right: Tensor,
    beta: float = 1,
    alpha: float = 1,
) -> Tensor:
    values = product(left, right)
    if (alpha, beta) != (1, 1):
        return values * alpha + bias * beta
    if isinstance(values, Jet) and not isinstance(bias, Jet):  # whose coefficients are nobody else's
        values.first.add_(bias)
        return values
    return values + bias


def by_channel(value: object, outputs: Tensor) -> Tensor:
    """A number for each channel, the second axis, in a shape that goes with the outputs."""
    assert isinstance(value, Tensor)
    return value.view(-1, *(1,) * (outputs.ndim - 2))


def quotient(left: object, right: object, **rounding: object) -> object:
    """A product with the reciprocal."""
    if rounding:
        raise NoJetError("no rule for a rounded quotient")
    assert isinstance(left, Tensor)
    if isinstance(right, int | float):
        return left * (1 / right)
    assert isinstance(right, Tensor)
    return left * torch.reciprocal(right)


def composed(function: Callable[..., object]) -> Rule:
    """The rule of what is written in other operations."""
    return lambda func, args, kwargs: function(*args, **kwargs)


VIEWS.append(linear)
RULES |= {
    **dict.fromkeys(
        named(
            "all any argmax argmin argsort bernoulli bincount bitwise_and bitwise_not bitwise_or bucketize ceil detach "
            "empty_like eq equal floor full_like ge gt is_nonzero isfinite isinf isnan isneginf isposinf le logical_and "
            "logical_not logical_or logical_xor lt ne new_empty new_empty_strided new_full new_ones new_zeros nonzero "
            "ones_like rand_like randn_like round sign sgn trunc zeros_like _local_scalar_dense _assert_async"
        ),
        constant,
    ),
    **dict.fromkeys(
        named(
            "adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d cat clone "
            "col2im constant_pad_nd contiguous cumsum embedding flip gather im2col index index_add index_select "
            "lift_fresh masked_fill mean neg positive reflection_pad1d reflection_pad2d reflection_pad3d repeat "
            "replication_pad1d replication_pad2d replication_pad3d roll scatter_add select_scatter slice_scatter stack "
            "sum trace tril triu unsafe_chunk unsafe_split unsafe_split_with_sizes upsample_bicubic2d upsample_bilinear2d "
            "upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d where "
            "_reshape_alias _to_copy _unsafe_view"
        ),
        linear,
    ),
    **dict.fromkeys(named("mul mm bmm mv dot outer"), bilinear),
    **dict.fromkeys(named("add sub rsub"), sums),
    aten.convolution: convolution,
    aten.addmm: composed(partial(_with_product, torch.mm)),
    aten.addmv: composed(partial(_with_product, torch.mv)),
    aten.baddbmm: composed(partial(_with_product, torch.bmm)),
    aten.addcmul: composed(lambda x, a, b, value=1: x + a * b * value),
    aten.lerp: composed(lambda a, b, weight: a + (b - a) * weight),
    aten.div: composed(quotient),
}
