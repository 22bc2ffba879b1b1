"""See every use of a weight while the network runs.

A :class:`torch.overrides.TorchFunctionMode` intercepts ``linear`` and the convolutions wherever they are
called, so layers, functional calls, layers used twice and tied weights are all the same thing: a *use* of
a parameter. Uses that are not seen here (``weight.T @ x``, a weight that is normalised first, an
embedding) or whose first axis is not the example are found out by :func:`trusted`, and their parameters
go to the general fallback; nothing is assumed from a module's type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from prunekit.network.hooks import Unhooked

Args: TypeAlias = Sequence[Any]
Kwargs: TypeAlias = Mapping[str, Any]
"""What an intercepted function was called with."""


@dataclass(frozen=True)
class Geometry:
    """How a weight meets its input: ``linear``, or a (transposed) convolution over ``dims`` axes."""

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    bias: bool = False
    """True for the additive term of such a map, whose input is a constant one."""

    @property
    def dims(self) -> int:
        """Number of spatial axes; 0 for a linear map."""
        return len(self.kernel)


Signature: TypeAlias = tuple[Geometry, tuple[int, ...], tuple[int, ...]]
"""A use's geometry, and the shapes of one example's input and output."""


@dataclass(frozen=True)
class Use:
    """One use of a parameter in a forward pass.

    Attributes:
        name: The parameter.
        geometry: The map.
        input: What entered, detached, first axis the example.
        edge: Where the output's gradient arrives in the autograd graph. An edge, not the output tensor:
            an in-place activation after the layer changes that tensor's place in the graph.
        output_shape: Shape of the output.
    """

    name: str
    geometry: Geometry
    input: Tensor
    edge: GradientEdge
    output_shape: torch.Size
    version: int = field(compare=False, default=0)

    @property
    def signature(self) -> Signature:
        """Everything about the use but the number of examples."""
        return self.geometry, tuple(self.input.shape[1:]), tuple(self.output_shape[1:])

    @property
    def intact(self) -> bool:
        """False if the input was changed in place after the use."""
        return self.input._version == self.version


class Capture(Unhooked):
    """Collects the uses of some parameters.

    Args:
        parameters: Name to parameter; only calls whose weight *is* one of these are recorded.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(p): name for name, p in parameters.items()}
        self.uses: list[Use] = []

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        """Record the call if it applies a watched weight."""
        kwargs = kwargs or {}
        output = super().__torch_function__(func, types, args, kwargs)
        describe = _DESCRIBE.get(func)
        if describe is not None and isinstance(output, Tensor) and output.requires_grad:
            x, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
            bias = _argument(args, kwargs, 2, "bias")
            names = self._names.get(id(weight)), self._names.get(id(bias))
            geometry = describe(weight, args, kwargs) if names != (None, None) and x.ndim >= 2 else None
            for name, is_bias in zip(names, (False, True), strict=True):
                if name is not None and geometry is not None:
                    edge = get_gradient_edge(output)
                    kind = replace(geometry, bias=is_bias)
                    self.uses.append(Use(name, kind, x.detach(), edge, output.shape, x._version))
        return output


def _argument(args: Args, kwargs: Kwargs, index: int, name: str, default: object = None) -> Any:
    return args[index] if len(args) > index else kwargs.get(name, default)


def _linear(weight: Tensor, args: Args, kwargs: Kwargs) -> Geometry | None:
    bias = _argument(args, kwargs, 2, "bias")
    shared = bias is not None and bias.shape != weight.shape[:1]  # one number broadcast over the outputs
    return Geometry() if weight.ndim == 2 and not shared else None


def _tuple(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)


def _convolution(weight: Tensor, args: Args, kwargs: Kwargs) -> Geometry:
    dims = weight.ndim - 2
    kernel = tuple(weight.shape[2:])
    stride = _tuple(_argument(args, kwargs, 3, "stride", 1), dims)
    padding = _argument(args, kwargs, 4, "padding", 0)
    dilation = _tuple(_argument(args, kwargs, 5, "dilation", 1), dims)
    groups = _argument(args, kwargs, 6, "groups", 1)
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = tuple((t // 2, t - t // 2) for t in total)
    else:
        pads = tuple((p, p) for p in _tuple(padding, dims))
    return Geometry(kernel, stride, pads, dilation, groups)


def _transposed(weight: Tensor, args: Args, kwargs: Kwargs) -> Geometry:
    dims = weight.ndim - 2
    stride = _tuple(_argument(args, kwargs, 3, "stride", 1), dims)
    padding = _tuple(_argument(args, kwargs, 4, "padding", 0), dims)
    groups = _argument(args, kwargs, 6, "groups", 1)
    dilation = _tuple(_argument(args, kwargs, 7, "dilation", 1), dims)
    pads = tuple((p, p) for p in padding)
    return Geometry(tuple(weight.shape[2:]), stride, pads, dilation, groups, transposed=True)


_DESCRIBE: dict[object, Callable[[Tensor, Args, Kwargs], Geometry | None]] = {
    F.linear: _linear,
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
    F.conv_transpose1d: _transposed,
    F.conv_transpose2d: _transposed,
    F.conv_transpose3d: _transposed,
}
