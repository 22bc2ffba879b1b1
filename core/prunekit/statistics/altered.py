"""Activations of which one unit is altered: what deleting a weight makes of a network, without computing the rest anew.

A weight of a linear map or a convolution reaches a single output unit. An :class:`Altered` tensor holds the activations
as they are, which all deletions share, and the altered unit of each deletion. Functions that treat units one by one
(activations, normalisation in eval mode, pooling, additions) act on that unit alone; the next linear map or convolution
adds its share of the difference to what it gives anyway. Whatever has no rule gets the whole tensor, so nothing depends
on the rules but time.

Everything here runs inside :func:`torch.func.vmap` over the deletions, so a unit's number is a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

Function: TypeAlias = Callable[..., Any]
Arguments: TypeAlias = Sequence[Any]
Keywords: TypeAlias = Mapping[str, Any]
Rule: TypeAlias = Callable[["Altered", Function, Arguments, Keywords], "Altered | Tensor | None"]
"""What a function makes of an altered first argument; ``None`` where the rule does not cover the call."""


class Shared:
    """What linear maps and convolutions make of activations as they are, remembered from one stack of deletions to the next.

    Passes of a network over the same examples call the same functions in the same order.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Function, int, Tensor, int]] = []
        self._next = 0

    def begin(self) -> None:
        """Begin a pass."""
        self._next = 0

    def apply(self, func: Function, x: Tensor, weight: Tensor, *rest: object, **kwargs: object) -> Tensor:
        """The function's value."""
        if torch._C._functorch.is_functorch_wrapped_tensor(x):
            found: Tensor = func(x, weight, *rest, **kwargs)
            return found
        place, self._next = self._next, self._next + 1
        if place < len(self._kept):
            known, whose, value, version = self._kept[place]
            # The network may have worked on it in place.
            if known is func and whose == id(weight) and value._version == version:
                return value
        found = func(x, weight, *rest, **kwargs)
        self._kept[place:] = [(func, id(weight), found, found._version)]
        return found


class Altered(Tensor):
    """A tensor with one altered unit.

    Args:
        base: All units as they are.
        was: The unit as it is: the base's shape with ``wide`` places along ``axis``.
        piece: The unit as it becomes, in the same shape.
        unit: Its number, a tensor of shape ``[1]``.
        shared: What the deletions share.
        axis: The units' axis, counted from the front.
        wide: Places of a unit along it, more than one where channels have been flattened.
    """

    base: Tensor
    was: Tensor
    piece: Tensor
    unit: Tensor
    shared: Shared
    axis: int
    wide: int
    whole: Tensor | None

    @staticmethod
    def __new__(
        cls, base: Tensor, was: Tensor, piece: Tensor, unit: Tensor, shared: Shared, axis: int, wide: int = 1
    ) -> Altered:
        """A tensor without memory of its own, in the base's shape."""
        made: Altered = torch.Tensor._make_wrapper_subclass(
            cls, base.shape, dtype=base.dtype, device=base.device, requires_grad=False
        )
        return made

    def __init__(
        self,
        base: Tensor,
        was: Tensor,
        piece: Tensor,
        unit: Tensor,
        shared: Shared,
        axis: int,
        wide: int = 1,
    ) -> None:
        self.base, self.was, self.piece, self.unit, self.shared = base, was, piece, unit, shared
        self.axis, self.wide, self.whole = axis, wide, None

    def of(self, base: Tensor, was: Tensor, piece: Tensor) -> Altered:
        """The same unit of another tensor of as many units."""
        return Altered(base, was, piece, self.unit, self.shared, self.axis, self.wide)

    def each(self, function: Callable[[Tensor], Any]) -> Altered:
        """What a function that treats units one by one makes of it."""
        return self.of(function(self.base), function(self.was), function(self.piece))

    def own(self, tensor: Tensor, axis: int) -> Tensor:
        """The unit's part of a tensor that has an axis of units."""
        if self.wide == 1:
            return tensor.index_select(axis, self.unit)
        apart = _split(tensor, axis, self.wide).index_select(axis, self.unit)
        return apart.flatten(axis, axis + 1)

    def together(self) -> Tensor:
        """All units, the altered one in its place."""
        if self.whole is None:
            units = self.base.shape[self.axis] // self.wide
            here = torch.arange(units, device=self.base.device) == self.unit
            shape = [1] * (self.base.ndim + 1)
            shape[self.axis] = units
            piece, base = (_split(t, self.axis, self.wide) for t in (self.piece, self.base))
            whole: Tensor = torch.where(here.view(shape), piece, base).flatten(self.axis, self.axis + 1)
            self.whole = whole
        return self.whole

    def become(self, other: Altered | Tensor) -> None:
        """Take another's place, for functions that work in place."""
        if isinstance(other, Altered):
            self.base, self.was, self.piece, self.unit = other.base, other.was, other.piece, other.unit
            self.axis, self.wide, self.whole = other.axis, other.wide, other.whole
        else:
            self.whole = other

    @classmethod
    def __torch_function__(
        cls, func: Function, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        """Apply a function by its rule, or to the whole tensor."""
        given = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in ABOUT:
                return func(*args, **given)
            subject = args[0] if args else None
            in_place = isinstance(subject, Altered) and (_in_place(func) or given.get("inplace") is True)
            found: Any = None
            if isinstance(subject, Altered) and (subject.whole is None or not in_place):
                found = _by_rule(subject, func, args, given)
            if found is None:
                plain = tree_map(_whole, [list(args), dict(given)])
                found = func(*plain[0], **plain[1])
            if in_place:
                assert isinstance(subject, Altered)
                subject.become(found)
                return subject
            return found

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares the one that is switched off
        cls, func: Function, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        """Whatever reaches torch below its Python functions gets the whole tensor."""
        plain = tree_map(_whole, [list(args), dict(kwargs or {})])
        return func(*plain[0], **plain[1])

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # torch has an Any there
        """For messages."""
        return f"Altered(shape {tuple(self.shape)}, axis {self.axis})"


def _split(tensor: Tensor, axis: int, wide: int) -> Tensor:
    """An axis of units with places each, as two."""
    shape = tensor.shape
    return tensor.reshape(*shape[:axis], -1, wide, *shape[axis + 1 :])


def _whole(value: object) -> object:
    return value.together() if isinstance(value, Altered) else value


def _in_place(func: Function) -> bool:
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name in _AUGMENTED


_AUGMENTED = frozenset(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "div"))


def _by_rule(subject: Altered, func: Function, args: Arguments, kwargs: Keywords) -> Altered | Tensor | None:
    rule = RULES.get(func)
    return None if rule is None else rule(subject, func, args[1:], kwargs)


def _plain(values: Arguments, kwargs: Keywords) -> bool:
    return not any(isinstance(value, Tensor) for value in (*values, *kwargs.values()))


def _out_of_place(kwargs: Keywords) -> dict[str, Any]:
    return {key: False if key == "inplace" else value for key, value in kwargs.items()}


def _each(x: Altered, func: Function, rest: Arguments, kwargs: Keywords) -> Altered | None:
    """A function of each number by itself."""
    if not _plain(rest, kwargs):
        return None
    given = _out_of_place(kwargs)
    return x.each(lambda t: func(t, *rest, **given))


def _each_in_place(x: Altered, func: Function, rest: Arguments, kwargs: Keywords) -> Altered | None:
    """The same of one that works in place: on copies, since others may hold the base."""
    if not _plain(rest, kwargs):
        return None
    return x.each(lambda t: func(t.clone(), *rest, **kwargs))


def _activation(x: Altered, func: Function, rest: Arguments, kwargs: Keywords) -> Altered | None:
    """A function of each number that may be told to work in place by its second argument."""
    if rest and rest[-1] is True:  # which of a function's arguments that is differs
        return None
    return _each(x, func, rest, kwargs)


def _dropout(x: Altered, func: Function, rest: Arguments, kwargs: Keywords) -> Altered | None:
    """Nothing in eval mode."""
    training = kwargs.get("training", rest[1] if len(rest) > 1 else True)
    return None if training else x.each(lambda t: t)


def _by_channel(x: Altered, func: Function, rest: Arguments, kwargs: Keywords) -> Altered | None:
    """Pooling: each channel by itself, on the axes behind it."""
    indices = kwargs.get("return_indices", False) or (bool(rest) and rest[-1] is True and len(rest) > 4)
    if not _plain(rest, kwargs) or indices or x.axis != 1 or x.wide != 1:
        return None
    return x.each(lambda t: func(t, *rest, **kwargs))


def _batch_norm(x: Altered, func: Function, rest: Arguments, kwargs: Keywords) -> Altered | None:
    """With running statistics, each channel by itself."""
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, rest, strict=False)) | dict(kwargs)
    if given.get("training", False) or x.axis != 1 or given.get("running_mean") is None:
        return None
    if any(isinstance(value, Tensor) and value.ndim != 1 for value in given.values()):
        return None
    scale = torch.rsqrt(x.own(given["running_var"], 0) + given.get("eps", 1e-5))
    if given.get("weight") is not None:
        scale = scale * x.own(given["weight"], 0)
    base = func(x.base, *rest, **kwargs)
    was = x.own(base, 1)
    return x.of(base, was, was + (x.piece - x.was) * scale.view(1, -1, *[1] * (x.base.ndim - 2)))


def _reshaped(x: Altered, func: Function, rest: Arguments, kwargs: Keywords) -> Altered | None:
    """Channels laid out one after another, ``[N, C, …]`` to ``[N, C·…]``; or nothing changed."""
    base = func(x.base, *rest, **kwargs)
    if base.shape == x.base.shape:
        return x.of(base, x.was, x.piece)
    if x.axis != 1 or base.ndim != 2 or len(base) != len(x.base):
        return None
    wide = x.wide * math.prod(x.base.shape[2:])
    was, piece = (t.reshape(len(base), -1) for t in (x.was, x.piece))
    return Altered(base, was, piece, x.unit, x.shared, 1, wide)


def _mean(x: Altered, func: Function, rest: Arguments, kwargs: Keywords) -> Altered | None:
    """Over the places of a channel, which lie behind it."""
    dims = kwargs.get("dim", rest[0] if rest else None)
    dims = [dims] if isinstance(dims, int) else dims
    if not dims or x.axis != 1 or any(not d % x.base.ndim > 1 for d in dims) or not _plain(rest, kwargs):
        return None
    return x.each(lambda t: func(t, *rest, **kwargs))


def _combined(x: Altered, func: Function, rest: Arguments, kwargs: Keywords) -> Altered | None:
    """With a number, or with a tensor of the same shape that is not altered."""
    other = rest[0] if rest else None
    if not isinstance(other, Tensor):
        return _each(x, func, rest, kwargs)
    if isinstance(other, Altered) or other.shape != x.base.shape:
        return None
    own = x.own(other, x.axis)
    changed = (func(t, own, *rest[1:], **kwargs) for t in (x.was, x.piece))
    return x.of(func(x.base, other, *rest[1:], **kwargs), *changed)


def _combined_in_place(x: Altered, func: Function, rest: Arguments, kwargs: Keywords) -> Altered | None:
    return _combined(x.each(Tensor.clone), func, rest, kwargs)


def _linear(x: Altered, func: Function, rest: Arguments, kwargs: Keywords) -> Tensor | None:
    """The map of what is there anyway, and the altered unit's share of the difference."""
    weight = rest[0] if rest else kwargs["weight"]
    if x.axis != x.base.ndim - 1 or isinstance(weight, Altered) or weight.ndim != 2:
        return None
    change, columns = x.piece - x.was, x.own(weight, 1).T
    share = change * columns if x.wide == 1 else change @ columns
    return share.add_(x.shared.apply(func, x.base, *rest, **kwargs))


def _convolution(x: Altered, func: Function, rest: Arguments, kwargs: Keywords) -> Tensor | None:
    names = ("weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, rest, strict=False)) | dict(kwargs)
    weight = given["weight"]
    if x.axis != 1 or x.wide != 1 or given.get("groups", 1) != 1 or x.base.ndim != weight.ndim:
        return None
    share: Tensor = func(x.piece - x.was, **{**given, "weight": x.own(weight, 1), "bias": None})
    return share.add_(x.shared.apply(func, x.base, **given))


def _named(names: str) -> list[Function]:
    """Functions of these names, wherever torch has them."""
    places = (torch, F, Tensor, torch.special)
    found = [getattr(place, name, None) for name in names.split() for place in places]
    return [function for function in found if callable(function)]


ABOUT: set[Any] = {
    getattr(Tensor, name).__get__
    for name in (
        "shape",
        "dtype",
        "device",
        "ndim",
        "layout",
        "is_cuda",
        "is_cpu",
        "requires_grad",
        "is_sparse",
    )
} | {
    getattr(Tensor, name)
    for name in ("size", "dim", "numel", "__len__", "is_floating_point", "ndimension", "nelement", "__repr__")
}
"""What only asks of a tensor's shape or kind."""

RULES: dict[Function, Rule] = {
    **dict.fromkeys(
        _named(
            "tanh sigmoid exp log abs neg square sqrt rsqrt reciprocal sin cos erf softsign tanhshrink logsigmoid gelu "
            "clone contiguous detach to float double half bfloat16 clamp clip clamp_min clamp_max expm1 log1p __neg__ "
            "positive nan_to_num"
        ),
        _each,
    ),
    **dict.fromkeys(
        _named("relu relu6 leaky_relu elu selu celu silu mish hardtanh hardswish hardsigmoid softplus"), _activation
    ),
    **dict.fromkeys(_named("relu_ tanh_ sigmoid_ leaky_relu_ elu_ selu_ clamp_ abs_ neg_ exp_"), _each_in_place),
    **dict.fromkeys(_named("dropout dropout1d dropout2d dropout3d alpha_dropout"), _dropout),
    **dict.fromkeys(
        _named(
            "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
            "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"
        ),
        _by_channel,
    ),
    **dict.fromkeys([F.batch_norm], _batch_norm),
    **dict.fromkeys(_named("flatten view reshape"), _reshaped),
    **dict.fromkeys(_named("mean sum amax amin"), _mean),
    **dict.fromkeys(_named("add sub mul div true_divide __add__ __radd__ __sub__ __mul__ __rmul__ __truediv__"), _combined),
    **dict.fromkeys(_named("add_ sub_ mul_ div_ __iadd__ __isub__ __imul__ __itruediv__"), _combined_in_place),
    F.linear: _linear,
    **dict.fromkeys([F.conv1d, F.conv2d, F.conv3d], _convolution),
}  # fmt: skip

SINGLE = frozenset(func for func, rule in RULES.items() if rule in (_each, _activation))
"""Functions of each number by itself."""
