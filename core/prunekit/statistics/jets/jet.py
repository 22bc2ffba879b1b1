"""Polynomials in one variable, as tensors: what a network makes of weights that move along a line.

A jet holds ``c₀ + c₁·t + … + c_K·t^K`` and goes through a network as a tensor would; the coefficients that come out are
the Taylor coefficients of the outputs. A product of two jets takes ``(K+1)(K+2)/2`` products, of which those with a
weight, ``W + t·Δ``, are ``2K+1``; nested forward derivatives would take ``3^K``.

Reference: Griewank & Walther, Evaluating Derivatives (2008), chapter 13. What has no rule here is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._pytree import tree_map

T = TypeVar("T")

aten = torch.ops.aten

Arguments = Sequence[object]
Keywords = Mapping[str, object]
Rule = Callable[[OpOverload, Arguments, Keywords], object]

RULES: dict[OpOverloadPacket, Rule] = {}
"""What becomes of jets in an operation; filled by the other modules here."""

VIEWS: list[Rule] = []
"""The rule of whatever only looks at its argument in another way."""


class NoJetError(NotImplementedError):
    """An operation that jets have no rule for."""


class Jet(Tensor):
    """A polynomial with tensors of one shape as coefficients.

    Args:
        coefficients: From order 0; ``None`` for zero, but for the first.
    """

    coefficients: list[Tensor | None]
    viewed: bool
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch asks for it

    @staticmethod
    def __new__(cls, coefficients: Sequence[Tensor | None]) -> Jet:
        """A tensor without memory of its own, in the shape of the first coefficient."""
        first = coefficients[0]
        assert first is not None
        jet: Jet = torch.Tensor._make_wrapper_subclass(
            cls,
            first.shape,
            strides=first.stride(),
            storage_offset=first.storage_offset(),
            dtype=first.dtype,
            device=first.device,
        )
        return jet

    def __init__(self, coefficients: Sequence[Tensor | None]) -> None:
        self.coefficients = list(coefficients)
        self.viewed = False

    @property
    def first(self) -> Tensor:
        """The coefficient of order 0: the tensor where the line begins."""
        first = self.coefficients[0]
        assert first is not None
        return first

    def slope(self) -> Tensor | None:
        """The derivative, a jet of one order less; ``None`` where it is zero."""
        rest = [None if c is None else c * k for k, c in enumerate(self.coefficients)][1:]
        if all(c is None for c in rest):
            return None
        return made([torch.zeros_like(self.first) if rest[0] is None else rest[0], *rest[1:]])

    def lower(self) -> Tensor:
        """The same to one order less."""
        return made(self.coefficients[:-1])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares the one that is switched off
        cls, func: OpOverload, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        """Apply an operation to polynomials.

        Raises:
            NoJetError: If there is no rule for it.
        """
        packet, given = func.overloadpacket, kwargs or {}
        if func._schema.is_mutable:
            return _in_place(func, args, given)
        rule = RULES.get(packet) or (VIEWS[0] if func.is_view else None)
        if rule is None:
            raise NoJetError(f"no rule for {func}")
        return rule(func, args, given)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # torch has an Any there
        """For messages."""
        return f"Jet(order {len(self.coefficients) - 1}, shape {tuple(self.shape)})"


def coefficients(value: Tensor, order: int) -> list[Tensor | None]:
    """Those of a tensor, which may be a jet; of a plain one, all but the first are zero."""
    return value.coefficients if isinstance(value, Jet) else [value, *[None] * order]


def made(values: Sequence[Tensor | None]) -> Tensor:
    """A jet, or a plain tensor where nothing depends on the variable or nothing can."""
    first = values[0]
    assert first is not None
    if not first.is_floating_point() or all(c is None for c in values[1:]):
        return first
    fit = [c if c is None or c.shape == first.shape else c.expand_as(first) for c in values]
    return Jet([c if c is None else c.to(first.dtype) for c in fit])


def order_of(args: object) -> int:
    """The least order of the jets among some arguments."""
    orders: list[int] = []
    tree_map(lambda a: orders.append(len(a.coefficients) - 1) if isinstance(a, Jet) else None, args)
    return min(orders)


def begun(arguments: T) -> T:
    """Arguments where the line begins."""
    begun: T = tree_map(lambda a: a.first if isinstance(a, Jet) else a, arguments)
    return begun


def note_view(argument: object) -> None:
    """Remember of a jet that others share its memory."""
    if isinstance(argument, Jet):
        argument.viewed = True


def _in_place(func: OpOverload, args: Arguments, kwargs: Keywords) -> object:
    """Put the coefficients of the result where those of the first argument are, which views may share."""
    target, name = args[0], func.overloadpacket.__name__
    plain = getattr(aten, name.removesuffix("_"), None)
    if not isinstance(target, Jet) or not name.endswith("_") or plain is None:
        raise NoJetError(f"no rule for {func}: what is written to is constant")
    result = aten.clone(args[1]) if name == "copy_" else plain(*args, **kwargs)
    assert isinstance(result, Tensor)
    if torch.Tag.inplace_view in func.tags:  # only the shape changes, which the jet has as well
        target.coefficients = coefficients(result, len(target.coefficients) - 1)
        with torch._C._DisableTorchDispatch():
            func(*args, **kwargs)
        return target
    values = coefficients(result.expand_as(target.first), len(target.coefficients) - 1)
    if not target.viewed:  # other jets may share its coefficients, which are left alone
        target.coefficients = list(values)
        return target
    for own, new in zip(target.coefficients, values, strict=True):
        if own is None and new is None:
            continue
        if own is None or _overlaps(own):
            raise NoJetError(f"no rule for {func}: its views would not see it")
        own.copy_(new) if new is not None else own.zero_()
    return target


def _overlaps(tensor: Tensor) -> bool:
    """Whether several elements share a place in memory, as in an expanded tensor."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def named(names: str) -> list[OpOverloadPacket]:
    """Operations by name; those that this torch does not have are left out."""
    return [getattr(aten, name) for name in names.split() if hasattr(aten, name)]
