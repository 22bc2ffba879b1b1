"""Which weights lie on a path from the inputs to the outputs: reachability, forwards and backwards.

The network runs once on a tensor that only says where something of the inputs arrives, 0 or 1. A weight's gate is 1 where it
is kept; linear maps and convolutions add up what their gates let through, and functions that treat units one by one let
everything through. The same run backwards says from where something still gets to the outputs. A function without a
rule, or a weight that is used in another way, and the answer is refused: it is never a guess.

Reference: Vysogorets & Kempe (2023), Connectivity Matters: Neural Network Pruning Through the Lens of Effective Sparsity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from prunekit.errors import PrunekitError, UnsupportedError
from prunekit.network.call import Inputs, call, few_examples
from prunekit.network.restore import evaluating

Function: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class Paths:
    """What paths there are through the weights that are kept.

    Attributes:
        through: Parameter to a bool tensor in its shape: whether a weight there would lie on a path, kept or not.
        fed: Parameter to a bool vector over the units of its layer: whether something of the inputs arrives.
        heard: The same: whether something of them gets to the outputs.
    """

    through: dict[str, Tensor]
    fed: dict[str, Tensor]
    heard: dict[str, Tensor]


def paths(model: nn.Module, inputs: Inputs, masks: Mapping[str, Tensor]) -> Paths:
    """Follow all paths.

    Args:
        model: Left as it was found; its weights' values do not matter, but for those that are no gate and exactly zero.
        inputs: Of a batch, whose first example is taken, or all where the network takes no single one.
        masks: Parameter to what is kept.

    Raises:
        UnsupportedError: If the network does something whose paths are not known, saying what.
    """
    with evaluating(model):
        gates = {
            name: mask.to(model.get_parameter(name).device).double().requires_grad_()
            for name, mask in masks.items()
        }
        reason = ""
        for some in (few_examples(inputs, 1), inputs):
            mode = _Following(model, gates)
            try:
                with mode:
                    outputs = call(model, tree_map(_marked, some))
                return mode.found(outputs)
            except _UnknownError as error:
                reason = str(error)
                break
            except PrunekitError:
                raise
            except Exception as error:  # a number of examples that is fixed inside
                reason = reason or f"{type(error).__name__}: {error}"
    raise UnsupportedError(f"the paths of the network are not known: {reason}")


class _UnknownError(Exception):
    """What has no rule."""


class _Mark(Tensor):
    """A tensor that says where something of the inputs arrives."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch asks for it


class _Reached(torch.autograd.Function):
    """1 where anything arrives, in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Forwards."""
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Backwards, also where nothing arrives forwards."""
        return (gradients[0] > 0).to(gradients[0].dtype)


def _marked(leaf: object) -> object:
    """An input: numbers become ones; indices stay, for an embedding."""
    if not isinstance(leaf, Tensor):
        return leaf
    ones = torch.ones_like(leaf, dtype=torch.float64) if leaf.is_floating_point() else leaf
    return ones.as_subclass(_Mark)


def _mark(value: Any) -> Any:
    return tree_map(lambda t: t.as_subclass(_Mark) if isinstance(t, Tensor) else t, value)


class _Following(TorchFunctionMode):
    """Runs a network on marks.

    Args:
        model: Whose parameters are not gates unless named.
        gates: By parameter.
    """

    def __init__(self, model: nn.Module, gates: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._gates = gates
        self._names = {id(model.get_parameter(name)): name for name in gates}
        self._others = {id(p) for p in model.parameters()} - self._names.keys()
        self._uses: list[tuple[str, Tensor, int]] = []

    def found(self, outputs: Tensor) -> Paths:
        """What the run has shown.

        Raises:
            _UnknownError: If a weight that is used is not seen.
        """
        ends = [*self._gates.values(), *(out for _, out, _ in self._uses)]
        total = outputs.as_subclass(Tensor).sum()
        slopes: Sequence[Tensor | None] = [None] * len(ends)
        if total.requires_grad:
            slopes = torch.autograd.grad(total, ends, allow_unused=True)
        through = {
            name: torch.zeros_like(gate, dtype=torch.bool) if slope is None else slope > 0
            for (name, gate), slope in zip(self._gates.items(), slopes, strict=False)
        }
        fed: dict[str, Tensor] = {}
        heard: dict[str, Tensor] = {}
        for (name, out, axis), slope in zip(self._uses, slopes[len(self._gates) :], strict=True):
            arrived = _over_units(out.detach() > 0, axis)
            got = torch.zeros_like(arrived) if slope is None else _over_units(slope > 0, axis)
            fed[name] = arrived | fed.get(name, torch.zeros_like(arrived))
            heard[name] = got | heard.get(name, torch.zeros_like(got))
        return Paths(through, fed, heard)

    def __torch_function__(
        self, func: Function, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Apply the rule of a function that marks or gates go into."""
        given = dict(kwargs or {})
        leaves = tree_leaves([list(args), given])
        marks = any(isinstance(leaf, _Mark) for leaf in leaves)
        gates = any(id(leaf) in self._names for leaf in leaves if isinstance(leaf, Tensor))
        name = getattr(func, "__name__", str(func))
        if not (marks or gates) or func in _ABOUT or name == "__get__":
            found = func(*args, **given)
            return _mark(found) if marks and isinstance(found, Tensor) and func not in _ABOUT else found
        layer = _LAYERS.get(func)
        if layer is not None and isinstance(args[0] if args else None, _Mark):
            return self._layer(func, layer, args, given)
        rule = RULES.get(func)
        if gates or rule is None:
            raise _UnknownError(f"there is no rule for {name}" + (" of a prunable weight" if gates else ""))
        return _mark(rule(func, *args, **given))

    def _layer(self, func: Function, axis: int, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        """A linear map or a convolution, through its gates."""
        weight = args[1] if len(args) > 1 else kwargs.pop("weight")
        name = self._names.get(id(weight))
        if name is None and id(weight) not in self._others:
            raise _UnknownError("a layer's weight is computed from others")
        gate = (weight != 0).double() if name is None else self._gates[name]
        rest = list(args[3:])
        kwargs.pop("bias", None)
        reached: Any = _Reached.apply
        out: Tensor = reached(func(args[0], gate, None, *rest, **kwargs))
        if name is not None:
            self._uses.append((name, out, axis))
        marked: Tensor = _mark(out)
        return marked


def _over_units(reached: Tensor, axis: int) -> Tensor:
    """Whether anything is there, unit by unit."""
    return reached.movedim(axis, 0).flatten(1).any(1) if reached.ndim > 1 else reached


def _through(func: Function, x: Tensor, *rest: object, **kwargs: object) -> Tensor:
    """A function of each number by itself."""
    return x


def _in_eval_mode(func: Function, x: Tensor, *rest: object, **kwargs: object) -> Tensor:
    """Dropout, which does nothing then."""
    if kwargs.get("training", rest[1] if len(rest) > 1 else True):
        raise _UnknownError("dropout acts")
    return x


def _moved(func: Function, *args: object, **kwargs: object) -> Any:
    """A function that only lays numbers out in another way."""
    if any(isinstance(leaf, Tensor) for leaf in tree_leaves([list(args[1:]), kwargs])):
        raise _UnknownError(f"there is no rule for {func.__name__} by values")
    return func(*args, **kwargs)


def _pooled(func: Function, x: Tensor, *rest: object, **kwargs: object) -> Tensor:
    """The sum over each window."""
    given = dict(zip(("kernel_size", "stride", "padding"), rest, strict=False)) | kwargs
    dims = int(func.__name__.rstrip("d")[-1]) if func.__name__[-1] == "d" else 0
    plain = {
        key: given[key]
        for key in ("kernel_size", "stride", "padding", "ceil_mode")
        if given.get(key) is not None
    }
    dilated = given.get("dilation", 1) not in (1, (1,) * dims, [1] * dims)
    if dilated or given.get("return_indices") or len(rest) > 3 or given.get("divisor_override"):
        raise _UnknownError(f"there is no rule for {func.__name__} with such options")
    if not plain.get("stride"):
        plain.pop("stride", None)
    found: Tensor = getattr(F, f"avg_pool{dims}d")(x, **plain)
    return found


def _pooled_to_size(func: Function, x: Tensor, size: Any, *rest: object, **kwargs: object) -> Tensor:
    if kwargs.get("return_indices") or True in rest:
        raise _UnknownError(f"there is no rule for {func.__name__} with such options")
    found: Tensor = getattr(F, f"adaptive_avg_pool{func.__name__.rstrip('d')[-1]}d")(x, size)
    return found


def _summed(func: Function, x: Tensor, *rest: object, **kwargs: object) -> Tensor:
    """A mean, a sum, a largest number: of everything along some axes."""
    dim: Any = kwargs.get("dim", rest[0] if rest else None)
    keep = kwargs.get("keepdim", rest[1] if len(rest) > 1 else False)
    return x.sum() if dim is None else x.sum(dim, keepdim=bool(keep))


def _combined(func: Function, *args: object, **kwargs: object) -> Tensor:
    """What depends on either of two depends on their sum, difference, product or quotient."""
    pair = [args[0], args[1] if len(args) > 1 else kwargs["other"]]
    shapes = [t.shape for t in pair if isinstance(t, Tensor)]
    shape = np.broadcast_shapes(*shapes)
    product = func.__name__.strip("_").removeprefix("i").removeprefix("r") == "mul"
    parts = []
    for part, factor in (pair, pair[::-1]):
        if isinstance(part, _Mark):
            share: Tensor = part.expand(shape)
            ends = product and isinstance(factor, Tensor) and not isinstance(factor, _Mark)
            parts.append(share * (factor != 0) if ends else share)
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _joined(func: Function, tensors: Sequence[Tensor], *rest: object, **kwargs: object) -> Tensor:
    """Of several, what is not marked brings nothing of the inputs."""
    marks = [t if isinstance(t, _Mark) else torch.zeros_like(t, dtype=torch.float64) for t in tensors]
    found: Tensor = func(marks, *rest, **kwargs)
    return found


def _mixed(func: Function, x: Tensor, *rest: object, **kwargs: object) -> Tensor:
    """Softmax: every place along an axis depends on all of them."""
    dim = kwargs.get("dim", rest[0] if rest else None)
    if not isinstance(dim, int):
        raise _UnknownError(f"there is no rule for {func.__name__} without an axis")
    return x.sum(dim, keepdim=True).expand_as(x)


def _layer_norm(func: Function, x: Tensor, shape: Sequence[int], *rest: object, **kwargs: object) -> Tensor:
    weight = kwargs.get("weight", rest[0] if rest else None)
    dims = list(range(x.ndim - len(shape), x.ndim))
    found = x.sum(dims, keepdim=True).expand_as(x)
    return found if weight is None else found * (weight != 0)


def _group_norm(func: Function, x: Tensor, groups: int, *rest: object, **kwargs: object) -> Tensor:
    weight = kwargs.get("weight", rest[0] if rest else None)
    grouped = x.reshape(len(x), groups, -1)
    return _scaled(grouped.sum(2, keepdim=True).expand_as(grouped).reshape(x.shape), weight)


def _batch_norm(func: Function, x: Tensor, *rest: object, **kwargs: object) -> Tensor:
    """With running statistics, each channel by itself; without, its places mix."""
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, rest, strict=False)) | kwargs
    if given.get("training"):
        raise _UnknownError("there is no rule for statistics of the batch")
    return _scaled(x, given.get("weight"))


def _instance_norm(func: Function, x: Tensor, *rest: object, **kwargs: object) -> Tensor:
    weight = kwargs.get("weight", rest[2] if len(rest) > 2 else None)
    return _scaled(x.sum(list(range(2, x.ndim)), keepdim=True).expand_as(x), weight)


def _scaled(x: Tensor, weight: object) -> Tensor:
    """By a factor for each channel, if there is one, of which those that are zero let nothing through."""
    return x * (weight != 0).view(1, -1, *[1] * (x.ndim - 2)) if isinstance(weight, Tensor) else x


def _embedded(func: Function, x: Tensor, weight: Tensor, *rest: object, **kwargs: object) -> Tensor:
    return torch.ones(*x.shape, weight.shape[1], dtype=torch.float64, device=weight.device)


def _named(names: str) -> list[Function]:
    """Functions of these names, wherever torch has them."""
    found = [getattr(place, name, None) for name in names.split() for place in (torch, F, Tensor)]
    return [function for function in found if callable(function)]


_LAYERS: dict[Function, int] = {F.linear: -1} | dict.fromkeys(
    _named("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"), 1
)
"""What gates go into, and the axis of its units."""

_ABOUT: set[Function] = {
    *_named("equal size dim numel is_floating_point is_complex is_inference stride is_contiguous __len__")
}
"""What only asks of a tensor's shape or kind."""

RULES: dict[Function, Function] = {
    **dict.fromkeys(
        _named(
            "relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu selu_ celu gelu silu mish hardtanh hardswish hardsigmoid "
            "softplus softsign tanh tanh_ sigmoid sigmoid_ logsigmoid exp log abs neg square sqrt sin cos erf clamp clamp_ "
            "clone contiguous detach to float double half bfloat16 type_as prelu pow __pow__ __neg__"
        ),
        _through,
    ),
    **dict.fromkeys(_named("dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout"), _in_eval_mode),
    **dict.fromkeys(
        _named(
            "flatten view reshape permute transpose swapaxes movedim squeeze unsqueeze expand narrow select chunk split "
            "unbind flip roll __getitem__ pad unflatten repeat_interleave t"
        ),
        _moved,
    ),
    **dict.fromkeys(_named("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d"), _pooled),
    **dict.fromkeys(
        _named(
            "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
            "adaptive_max_pool3d"
        ),
        _pooled_to_size,
    ),
    **dict.fromkeys(_named("mean sum amax amin"), _summed),
    **dict.fromkeys(
        _named(
            "add add_ sub sub_ mul mul_ div div_ true_divide maximum minimum __add__ __radd__ __iadd__ __sub__ __rsub__ "
            "__isub__ __mul__ __rmul__ __imul__ __truediv__ __itruediv__"
        ),
        _combined,
    ),
    **dict.fromkeys(_named("cat concat stack"), _joined),
    **dict.fromkeys(_named("softmax log_softmax"), _mixed),
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.embedding: _embedded,
}  # fmt: skip
