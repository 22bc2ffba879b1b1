"""Which functions of torch multiply inputs by a matrix, and how their operands lie."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Args: TypeAlias = Sequence[Any]
Kwargs: TypeAlias = Mapping[str, Any]
"""What an intercepted function was called with."""


@dataclass(frozen=True)
class Geometry:
    """How a weight meets its input: ``linear``, or a (transposed) convolution over ``dims`` axes.

    Attributes:
        kernel: Of a convolution; empty for a linear map.
        stride: Of a convolution.
        padding: Before and after, by axis.
        dilation: Of a convolution.
        groups: Of a convolution; matrices of a batch of them.
        transposed: A transposed convolution, or a linear map whose weight lies as ``[inputs, outputs]``.
        bias: True for the additive term of such a map, whose input is a constant one.
        batched: A batch of linear maps, each with inputs of its own: the first axis is theirs.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    bias: bool = False
    batched: bool = False

    @property
    def dims(self) -> int:
        """Number of spatial axes; 0 for a linear map."""
        return len(self.kernel)


@dataclass(frozen=True)
class Product:
    """A call that may multiply inputs by a weight.

    Attributes:
        weight: The operand that may be a parameter, or lie in one's memory.
        matrices: The same as ``[groups, outputs, inputs]``; ``None`` for a transposed convolution.
        geometry: The map.
        entered: Makes what goes in, once it is known that the operand is a weight: ``[..., inputs]`` for linear maps,
            ``[groups, positions, inputs]`` for a batch of them, and as the function takes it for convolutions.
        outputs: Brings what has the shape of the function's output into the form of what goes in.
    """

    weight: Tensor
    matrices: Tensor | None
    geometry: Geometry
    entered: Callable[[], Tensor]
    outputs: Callable[[Tensor], Tensor]

    def as_bias(self, bias: Tensor) -> Product:
        """The additive term of the same map."""
        return replace(self, weight=bias, matrices=None, geometry=replace(self.geometry, bias=True))


def products(func: object, args: Args, kwargs: Kwargs) -> Iterator[Product]:
    """What a call multiplies, for every operand that may be a weight; nothing for other functions."""
    describe = _DESCRIBE.get(func)
    if describe is not None and kwargs.get("out") is None:
        yield from describe(args, kwargs)


def unchanged(outputs: Tensor) -> Tensor:
    """Outputs that have the input's form already."""
    return outputs


def _turned(outputs: Tensor) -> Tensor:
    return outputs.mT


def _argument(args: Args, kwargs: Kwargs, index: int, name: str, default: object = None) -> Any:
    return args[index] if len(args) > index else kwargs.get(name, default)


def _linear(args: Args, kwargs: Kwargs) -> Iterator[Product]:
    x, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
    bias = _argument(args, kwargs, 2, "bias")
    shared = bias is not None and bias.shape != weight.shape[:1]  # one number broadcast over the outputs
    if weight.ndim == 2 and x.ndim >= 2 and not shared:
        found = Product(weight, weight.unsqueeze(0), Geometry(), lambda: x, unchanged)
        yield found
        if bias is not None:
            yield found.as_bias(bias)


def _convolution(args: Args, kwargs: Kwargs) -> Iterator[Product]:
    x, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
    dims = weight.ndim - 2
    padding = _argument(args, kwargs, 4, "padding", 0)
    dilation = _tuple(_argument(args, kwargs, 5, "dilation", 1), dims)
    kernel = tuple(weight.shape[2:])
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = tuple((t // 2, t - t // 2) for t in total)
    else:
        pads = tuple((p, p) for p in _tuple(padding, dims))
    stride, groups = (
        _tuple(_argument(args, kwargs, 3, "stride", 1), dims),
        _argument(args, kwargs, 6, "groups", 1),
    )
    geometry = Geometry(kernel, stride, pads, dilation, groups)
    matrices = weight.reshape(groups, len(weight) // groups, -1) if weight.numel() else None
    yield from _with_bias(Product(weight, matrices, geometry, lambda: x, unchanged), args, kwargs)


def _transposed(args: Args, kwargs: Kwargs) -> Iterator[Product]:
    x, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
    dims = weight.ndim - 2
    geometry = Geometry(
        tuple(weight.shape[2:]),
        _tuple(_argument(args, kwargs, 3, "stride", 1), dims),
        tuple((p, p) for p in _tuple(_argument(args, kwargs, 4, "padding", 0), dims)),
        _tuple(_argument(args, kwargs, 7, "dilation", 1), dims),
        _argument(args, kwargs, 6, "groups", 1),
        transposed=True,
    )
    yield from _with_bias(Product(weight, None, geometry, lambda: x, unchanged), args, kwargs)


def _with_bias(found: Product, args: Args, kwargs: Kwargs) -> Iterator[Product]:
    yield found
    bias = _argument(args, kwargs, 2, "bias")
    if bias is not None:
        yield found.as_bias(bias)


def _tuple(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)


def _matmul(args: Args, kwargs: Kwargs) -> Iterator[Product]:
    left, right = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "other")
    if right is None:
        right = _argument(args, kwargs, 1, "mat2")
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        yield from _product(left, right)


def _product(left: Tensor, right: Tensor) -> Iterator[Product]:
    """Either side may be the weight."""
    if left.ndim >= 2 and right.ndim == 2:
        yield Product(right, right.mT.unsqueeze(0), Geometry(), lambda: left, unchanged)
    if left.ndim == 2 and right.ndim >= 2:
        yield Product(left, left.unsqueeze(0), Geometry(), lambda: right.mT, _turned)
    if left.ndim == right.ndim == 3 and len(left) == len(right):
        geometry = Geometry(groups=len(left), batched=True)
        yield Product(right, right.mT, geometry, lambda: left, unchanged)
        yield Product(left, left, geometry, lambda: right.mT, _turned)


def _added(args: Args, kwargs: Kwargs) -> Iterator[Product]:
    """A product with something added to it."""
    several = "batch1" in kwargs
    left = _argument(args, kwargs, 1, "batch1" if several else "mat1")
    right = _argument(args, kwargs, 2, "batch2" if several else "mat2")
    added = _argument(args, kwargs, 0, "input")
    if kwargs.get("alpha", 1) != 1 or len(args) > 3:
        return
    for found in _product(left, right):
        yield found
        plain = found.outputs is unchanged and not found.geometry.batched
        if plain and added.ndim == 1 and kwargs.get("beta", 1) == 1 and len(added) == right.shape[-1]:
            yield found.as_bias(added)


def _grouped(args: Args, kwargs: Kwargs) -> Iterator[Product]:
    """Runs of rows, each with a matrix of its own, as mixtures of experts multiply."""
    rows, stack = _argument(args, kwargs, 0, "mat_a"), _argument(args, kwargs, 1, "mat_b")
    ends = _argument(args, kwargs, 2, "offs")
    if ends is None or rows.ndim != 2 or stack.ndim != 3:
        return
    for number, (start, stop) in enumerate(pairwise([0, *ends.tolist()])):
        if stop > start:

            def run(t: Tensor, start: int = start, stop: int = stop) -> Tensor:
                return t[start:stop]

            yield Product(stack, stack[number].mT.unsqueeze(0), Geometry(), partial(run, rows), run)


def _einsum(args: Args, kwargs: Kwargs) -> Iterator[Product]:
    operands = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
    if len(operands) != 2 or not isinstance(args[0], str) or "->" not in args[0]:
        return
    left, _, result = args[0].replace(" ", "").partition("->")
    letters = left.split(",")
    for weight, x, own, other in zip(operands, operands[::-1], letters, letters[::-1], strict=True):
        found = _of_equation(weight, x, own, other, result)
        if found is not None:
            yield found


def _of_equation(weight: Tensor, x: Tensor, own: str, other: str, result: str) -> Product | None:
    """An equation as a product of matrices; ``None`` where it is something else."""
    further = "".join(chr(0x100 + i) for i in range(x.ndim - len(other.replace("...", ""))))
    other, result = other.replace("...", further), result.replace("...", further)
    if "." in own or any(len(set(some)) < len(some) for some in (own, other, result)):
        return None

    def by_memory(some: str) -> str:  # axes that lie one within the other can be taken together
        return "".join(sorted(some, key=lambda c: -weight.stride(own.index(c))))

    batch = by_memory("".join(c for c in own if c in other and c in result))
    summed = by_memory("".join(c for c in own if c in other and c not in result))
    free = by_memory("".join(c for c in own if c not in other and c in result))
    rest = "".join(c for c in result if c in other and c not in own)
    if (
        not summed
        or not free
        or not rest
        or len(batch + summed + free) < len(own)
        or len(rest + batch + summed) < len(other)
    ):
        return None
    size = dict(zip(own + other, (*weight.shape, *x.shape), strict=True))
    groups, outputs, inputs = (math.prod(size[c] for c in some) for some in (batch, free, summed))
    try:
        matrices = weight.permute([own.index(c) for c in batch + free + summed]).view(groups, outputs, inputs)
    except RuntimeError:  # it does not lie so
        return None
    positions = [groups, -1] if batch else [size[c] for c in rest]
    order = [result.index(c) for c in batch + rest + free]

    def arranged(t: Tensor) -> Tensor:
        return t.permute(order).reshape(*positions, outputs)

    def entered() -> Tensor:
        return x.permute([other.index(c) for c in batch + rest + summed]).reshape(*positions, inputs)

    geometry = Geometry(groups=groups, batched=True) if batch else Geometry()
    return Product(weight, matrices, geometry, entered, arranged)


_DESCRIBE: dict[object, Callable[[Args, Kwargs], Iterator[Product]]] = {
    F.linear: _linear,
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
    F.conv_transpose1d: _transposed,
    F.conv_transpose2d: _transposed,
    F.conv_transpose3d: _transposed,
    torch.einsum: _einsum,
    **dict.fromkeys((torch.mm, torch.bmm, torch.matmul, Tensor.mm, Tensor.bmm, Tensor.matmul), _matmul),
    Tensor.__matmul__: _matmul,
    **dict.fromkeys(
        filter(None, (getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None))), _grouped
    ),
    **dict.fromkeys((torch.addmm, torch.baddbmm, Tensor.addmm, Tensor.baddbmm), _added),
}


def _seen_through(function: Any) -> Any:
    """A function of torch's that asks whether somebody watches, and hands itself over as a whole; here it does not ask."""
    names = {**function.__globals__, "has_torch_function": lambda *_: False}
    copy = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


COMPOSED: Mapping[object, Callable[..., object]] = {
    F.multi_head_attention_forward: _seen_through(F.multi_head_attention_forward)
}
"""Functions made of others, to the same whose parts can be watched."""
