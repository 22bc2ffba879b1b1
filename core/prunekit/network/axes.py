"""See in use along which axis of a weight its inputs lie."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from prunekit import distributed
from prunekit.masks.axes import Axes, remember_axes, unknown_axes
from prunekit.network.call import Batch, Inputs, call, rows, unpack
from prunekit.network.restore import evaluating

_EXAMPLES = 64  # as many of a batch as are looked at first: some networks need more than a few


def observe_axes(
    model: nn.Module, parameters: Mapping[str, Tensor], batches: Callable[[], Sequence[Batch]]
) -> None:
    """Run the network once, where there are weights whose class does not tell their axes, and see how they are used.

    Products are watched below autograd, where a view of a weight still lies in its memory, so that transposed, cut and
    stacked weights are seen as well; ``einsum`` above it, since it may copy a weight. What no product shows, or two
    show differently, stays unknown.

    Args:
        model: Left as it was found.
        parameters: Those that matter, by name.
        batches: The examples, asked for only where there is something to see; of several processes, the first looks.
    """
    unknown = unknown_axes(model, parameters)
    if unknown:
        seen = _observed(model, unknown, batches()) if distributed.rank() == 0 else {}
        remember_axes(model, distributed.from_first(seen))


def _observed(model: nn.Module, weights: Mapping[str, Tensor], batches: Sequence[Batch]) -> dict[str, Axes]:
    for some in _attempts(batches):
        seen = _Seen(weights)
        try:
            with (
                torch.inference_mode(False),
                evaluating(model),
                torch.enable_grad(),
                _Products(seen),
                _Sums(seen),
            ):
                call(model, some)
        except (
            Exception
        ):  # some networks take only a whole batch; what else is wrong shows when they are used
            continue
        return seen.axes()
    return {}


def _attempts(batches: Sequence[Batch]) -> list[Inputs]:
    """Inputs to run: some of the first batch's, then all of them."""
    inputs = [unpack(batch)[0] for batch in batches[:1]]
    return [part for whole in inputs for part in (rows(whole, 0, _EXAMPLES), whole)]


class _Seen:
    """The axes of some weights in every product that they took part in.

    Args:
        weights: By name.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = {w.untyped_storage().data_ptr(): (name, w) for name, w in weights.items()}
        self._seen: dict[str, set[Axes]] = {name: set() for name in weights}

    def axes(self) -> dict[str, Axes]:
        """What all products agree on; unknown where they do not, or there was none."""
        return {
            name: (_only({inputs for inputs, _ in seen}), _only({outputs for _, outputs in seen}))
            for name, seen in self._seen.items()
        }

    def add(self, operand: Tensor, contracted: int | None, free: int | None) -> None:
        """Note the axes of an operand, if it is a weight or a view of one."""
        home = self._weights.get(operand.untyped_storage().data_ptr())
        if home is not None:
            name, weight = home
            self._seen[name].add((_axis(weight, operand, contracted), _axis(weight, operand, free)))


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every product of matrices."""

    def __init__(self, seen: _Seen) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        """Note the operands, and go on."""
        for operand, contracted, free in _operands(func, args):
            self._seen.add(operand, contracted, free)
        return func(*args, **(kwargs or {}))


class _Sums(TorchFunctionMode):
    """Notes every ``einsum`` of two operands that is written as an equation."""

    def __init__(self, seen: _Seen) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        """Note the operands, and go on."""
        if func is torch.einsum and len(args) == 3 and isinstance(args[0], str):
            left, _, result = args[0].replace(" ", "").partition("->")
            letters = left.split(",")
            for operand, own, other in zip(args[1:], letters, letters[::-1], strict=True):
                summed = [i for i, letter in enumerate(own) if letter in other and letter not in result]
                staying = [i for i, letter in enumerate(own) if letter in result and letter not in other]
                if result and "." not in own:
                    self._seen.add(operand, _only(summed), _only(staying))
        return func(*args, **(kwargs or {}))


def _only(axes: Collection[int | None]) -> int | None:
    return next(iter(axes)) if len(axes) == 1 else None


def _operands(func: Any, args: Sequence[Any]) -> list[tuple[Tensor, int, int]]:
    """The operands of a product, each with the axis that is summed over and the one that stays."""
    kind = str(func.overloadpacket)
    first = {
        "aten.mm": 0,
        "aten.bmm": 0,
        "aten.mv": 0,
        "aten.addmm": 1,
        "aten.baddbmm": 1,
        "aten.addmv": 1,
    }.get(kind)
    if first is not None:
        return [(args[first], -1, -2), *([(args[first + 1], -2, -1)] if args[first + 1].ndim > 1 else [])]
    if kind == "aten.convolution":
        return [(args[1], 0, 1) if args[6] else (args[1], 1, 0)]
    return []


def _axis(weight: Tensor, view: Tensor, axis: int | None) -> int | None:
    """The axis of a weight that an axis of a view of it runs along."""
    if axis is None:
        return None
    stride, size = view.stride(axis), view.shape[axis]
    if size == 1:  # its stride means nothing
        return _only([i for i, n in enumerate(weight.shape) if n == 1])
    return _only([i for i, n in enumerate(weight.shape) if weight.stride(i) == stride and n >= size])
