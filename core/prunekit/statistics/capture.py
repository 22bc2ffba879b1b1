"""See every use of a weight while the network runs.

A :class:`torch.overrides.TorchFunctionMode` intercepts ``linear``, the convolutions and the products of matrices
wherever they are called, so layers, functional calls, layers used twice and tied weights are all the same thing: a
*use* of a parameter. A weight may be transposed, cut or stacked on the way: what counts is that the operand lies in
its memory. Uses that are not seen here (a weight that is normalised first, an embedding) or whose first axis is not
the example are found out by ``verification``, and their parameters go to the general fallback; nothing is assumed from
a module's type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from prunekit.network.hooks import Unhooked
from prunekit.statistics.products import COMPOSED, Args, Geometry, Kwargs, Product, products, unchanged
from prunekit.statistics.rows import Part, Rows, part_of

Signature: TypeAlias = tuple[Geometry, tuple[int, ...], tuple[int, ...]]
"""A use's geometry, and the shapes of one example's input and output."""

Order: TypeAlias = Literal["first", "second", "folded", "folded_last"]
"""Where the examples are in what enters a linear map: on an axis, or folded into the first, before or after positions."""


@dataclass(frozen=True)
class Use:
    """One use of a parameter in a forward pass.

    Attributes:
        name: The parameter.
        geometry: The map.
        input: What entered, detached; once its order is known, first axis the example.
        edge: Where the output's gradient arrives in the autograd graph. An edge, not the output tensor:
            an in-place activation after the layer changes that tensor's place in the graph.
        output_shape: Shape of the output, in the order of the input.
        part: The rows of the parameter that are used; ``None`` for biases and transposed convolutions.
        returned: Brings a gradient that arrives at the edge into the output's shape.
    """

    name: str
    geometry: Geometry
    input: Tensor
    edge: GradientEdge
    output_shape: torch.Size
    version: int = field(compare=False, default=0)
    part: Part | None = None
    returned: Callable[[Tensor], Tensor] = field(compare=False, default=unchanged)

    @property
    def signature(self) -> Signature:
        """Everything about the use but the number of examples."""
        return self.geometry, tuple(self.input.shape[1:]), tuple(self.output_shape[1:])

    @property
    def intact(self) -> bool:
        """False if the input was changed in place after the use."""
        return self.input._version == self.version

    @property
    def whole(self) -> bool:
        """Whether the weight is used as one matrix or kernel."""
        return self.part is None or (self.part.whole and not self.geometry.batched)

    def orders(self, examples: int) -> list[Order]:
        """In which orders so many examples may lie in the input."""
        shape, found = self.input.shape, list[Order]()
        linear = self.geometry.dims == 0 and not self.geometry.batched
        if shape[0] == examples:
            found.append("first")
        if linear and len(shape) > 2 and shape[1] == examples:
            found.append("second")
        if linear and shape[0] > examples > 0 and shape[0] % examples == 0:
            found += ["folded", "folded_last"]
        return found

    def ordered(self, order: Order, examples: int) -> Use:
        """The use with the example on the first axis."""
        if order == "first":
            return self
        entered = _ordered(self.input, order, examples)
        shape = _ordered(torch.empty(self.output_shape, device="meta"), order, examples).shape
        before = self.returned
        return replace(
            self,
            input=entered,
            output_shape=shape,
            version=entered._version,
            returned=lambda g: _ordered(before(g), order, examples),
        )


def _ordered(t: Tensor, order: Order, examples: int) -> Tensor:
    if order == "second":
        return t.transpose(0, 1)
    if order == "folded":
        return t.reshape(examples, -1, *t.shape[1:])
    return t.reshape(-1, examples, *t.shape[1:]).transpose(0, 1)


class Capture(Unhooked):
    """Collects the uses of some parameters.

    Args:
        parameters: Name to parameter; only products with what lies in the memory of one of these are recorded.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(p): name for name, p in parameters.items()}
        self._homes: dict[int, list[tuple[str, Tensor]]] = {}
        for name, p in parameters.items():
            if p.layout == torch.strided and p.numel():
                self._homes.setdefault(p.untyped_storage().data_ptr(), []).append((name, p))
        self._parameters = parameters
        self.uses: list[Use] = []

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        """Record the call if it applies a watched weight."""
        kwargs = kwargs or {}
        if func in COMPOSED:
            with self:
                return COMPOSED[func](*args, **kwargs)
        output = super().__torch_function__(func, types, args, kwargs)
        if isinstance(output, Tensor) and output.requires_grad:
            for product in products(func, args, kwargs):
                self._note(product, output)
        return output

    def _note(self, product: Product, output: Tensor) -> None:
        """Keep a use, if the operand is a parameter or lies in one's memory."""
        name, part = self._names.get(id(product.weight)), None
        geometry = product.geometry
        if product.matrices is not None:
            if name is None:
                name = self._home(product.weight)
            if name is None:
                return
            parameter = self._parameters[name]
            if parameter is product.weight and geometry.dims:
                rows, units = Rows.plain(parameter.shape), len(parameter) // geometry.groups
                part = Part(rows, tuple(range(0, len(parameter), units)), units) if units else None
            else:
                part = part_of(parameter, product.matrices, math.prod(geometry.kernel))
            if part is None:
                return
            if not geometry.dims and part.rows.across > 1:
                geometry = replace(geometry, transposed=True)
        if name is not None:
            shape = output.shape
            if product.outputs is not unchanged:
                shape = product.outputs(torch.empty(shape, device="meta")).shape
            edge, entered = get_gradient_edge(output), product.entered().detach()
            self.uses.append(
                Use(name, geometry, entered, edge, shape, entered._version, part, product.outputs)
            )

    def _home(self, operand: Tensor) -> str | None:
        """The parameter whose memory holds an operand that is no parameter itself, but made from one."""
        if not operand.requires_grad or operand.layout != torch.strided or not operand.numel():
            return None
        try:
            found = self._homes.get(operand.untyped_storage().data_ptr(), ())
        except (RuntimeError, NotImplementedError):  # a tensor without memory of its own
            return None
        for name, p in found:
            if p.storage_offset() <= operand.storage_offset() < p.storage_offset() + p.numel():
                return name
        return None
