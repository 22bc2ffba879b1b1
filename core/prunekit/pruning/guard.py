"""Before anything is pruned: does the network compute one function of its weights, whichever way it is asked?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunekit import distributed
from prunekit.errors import RunError
from prunekit.losses.base import Loss
from prunekit.network.call import Batch, call, count, rows, unpack
from prunekit.network.measure import SLICE, measure, slice_size
from prunekit.network.noise import drawing
from prunekit.network.remembered import draws_elsewhere, drew_from_its_own
from prunekit.network.restore import evaluating

_OTHER = SLICE // 2

_ROUNDING = 50
"""Differences of so many units in the last place, times the root of the number of terms, are rounding."""


def refuse_several_functions(
    model: nn.Module, batches: Sequence[Batch], loss: Loss, before: float, estimated: bool
) -> None:
    """Compare the loss of the unchanged weights as it was found, as it is measured twice, and in other slices.

    Other slices where batches are too large to be measured whole: examples that see each other have a loss only as
    whole batches. Costs two forward passes of the examples, or three with other slices.

    Args:
        model: Not yet changed.
        batches: The first step's examples; of several processes, each has its own.
        loss: The task loss.
        before: The loss that the step will be compared with.
        estimated: Whether it came with the statistics, and was not measured.

    Raises:
        RunError: If they differ by more than rounding: what a step changes could not be told from what changes anyway.
            Says which of the known causes it looks like.
    """
    twice = measure(model, [*batches, *batches], loss)[0]  # one set of passes after the other
    otherwise = measure(model, batches, loss, at_once=_OTHER)[0] if _are_cut(batches) else twice
    losses = [before, twice, otherwise]
    if not all(map(math.isfinite, losses)):
        return  # which the step refuses by itself
    room = _ROUNDING * _terms(batches) ** 0.5 * max(1.0, abs(before))
    apart = max(losses) - min(losses)
    if apart <= room * _eps(t.dtype for t in (*model.parameters(), *model.buffers())):
        return
    room *= max(distributed.gather(_coarsest(model, batches)))
    if apart <= room:
        return
    _refuse_noise(model, batches)
    said = "the network is not the same function of its weights each time: on the first step's examples and with "
    said += "unchanged weights "
    once = measure(model, batches, loss)[0]
    if abs(twice - once) > room:
        raise RunError(
            f"{said}its loss is {once:.9g} in one pass and {2 * twice - once:.9g} in the next. It keeps state between "
            "passes where prunekit cannot restore it: in a global, a closure, or memory that it writes through .data or "
            "numpy; or the batches change as they are read. Keep state in attributes or buffers of modules, or reset it"
        )
    if abs(otherwise - once) > room:
        size = max(slice_size(unpack(batch)[0]) for batch in batches)
        raise RunError(
            f"{said}its loss is {once:.9g} in slices of {size} examples and {otherwise:.9g} in slices of {_OTHER}. Its "
            "examples influence each other in eval mode (statistics of the batch, sorting or ranking over it, attention "
            f"across it): give self-contained batches of at most {SLICE} examples"
        )
    one, other = ("with statistics", "measured") if estimated else ("measured", "measured again")
    raise RunError(
        f"{said}its loss is {before:.9g} {one} and {once:.9g} {other}. It behaves differently when gradients are "
        "needed: does its forward check requires_grad, or keep state between passes outside its modules?"
    )


def _are_cut(batches: Sequence[Batch]) -> bool:
    largest = max((count(unpack(batch)[0]) for batch in batches), default=0)
    return max(distributed.gather(largest)) > SLICE


def _terms(batches: Sequence[Batch]) -> float:
    targets = [leaf for batch in batches for leaf in tree_leaves(unpack(batch)[1])]
    return max(1.0, *distributed.sums(sum(t.numel() for t in targets if isinstance(t, Tensor))))


def _eps(dtypes: Any) -> float:
    """That of the coarsest floating-point type among some; float64's without any."""
    return max(
        (torch.finfo(d).eps for d in set(dtypes) if d.is_floating_point),
        default=torch.finfo(torch.float64).eps,
    )


class _Seeing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the types of all tensors that are computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        self.dtypes.update(t.dtype for t in tree_leaves(result) if isinstance(t, Tensor))
        return result


def _coarsest(model: nn.Module, batches: Sequence[Batch]) -> float:
    """The rounding inside the network, which may cast by itself (its own autocast)."""
    seeing = _Seeing()
    for batch in batches[:1]:
        with evaluating(model), seeing:
            call(model, rows(unpack(batch)[0], 0, SLICE))
    return _eps(seeing.dtypes)


def _refuse_noise(model: nn.Module, batches: Sequence[Batch]) -> None:
    names: list[str] = []
    own = False
    for batch in batches[:1]:
        with evaluating(model):
            names = drawing(model, rows(unpack(batch)[0], 0, SLICE))
            own = drew_from_its_own(model)
    if names or own or draws_elsewhere(model):
        where = f" ({', '.join(map(repr, names))})" if names else ""
        raise RunError(
            f"the network draws random numbers in eval mode{where}, so losses before and after a step would be those of "
            "different networks. Dropout must check self.training (F.dropout(x, p, training=self.training)); intended noise "
            "can be drawn once, into a buffer"
        )
