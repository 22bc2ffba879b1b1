"""The true change of the loss on deleting single weights, many of them in one pass.

A weight of a linear map or a convolution reaches one output unit, and its deletion changes that unit by
``−w_ij·x_j``: the layer's input is computed once for all deletions, and only what comes after it for each
(:mod:`prunekit.statistics.altered`), also where the layer is used several times. Other weights are stacked and the
network is run on the stack. On every slice of the examples both are compared with networks from which a weight has
really been deleted, one after another; where they disagree, or the network cannot be run on a stack, it is
one weight after another.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap
from torch.overrides import TorchFunctionMode

from prunekit import distributed
from prunekit.errors import DataError
from prunekit.losses.base import Loss
from prunekit.network.call import Batch, Inputs, call, count, pieces, unpack
from prunekit.network.measure import slice_size
from prunekit.network.restore import evaluating
from prunekit.statistics.altered import Altered, Arguments, Function, Keywords, Shared
from prunekit.statistics.chain import Chain, chain_after

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRIED = 3  # deletions of a slice that are compared with deleting one by one
_MOST = 1024  # deletions at once, beyond which nothing is gained
_AGAIN = 48  # bytes for each byte of a chain's stacked outputs: with what their losses take, as many as caches hold
_STACK = 64 << 20  # bytes of stacked activations, beyond which a processor's caches help no more


class Deletions:
    """What deleting single weights of a model does to its loss, at the weights as they are.

    Args:
        model: Left as it was found.
        loss: Its terms and normalisers are summed, so batch sizes do not matter.
        parameters: From which weights may be deleted.
        memory: Bytes for stacked activations.
    """

    def __init__(self, model: nn.Module, loss: Loss, parameters: Mapping[str, Tensor], memory: int) -> None:
        self._model, self._loss, self._parameters, self._memory = model, loss, dict(parameters), memory

    @distributed.together()
    def changes(self, batches: Iterable[Batch], places: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Loss without a weight minus loss with it, weight by weight; in eval mode.

        Args:
            batches: Of several processes, each has its own part, maybe none.
            places: Parameter to the flat indices of its weights.

        Returns:
            By parameter, in the order of ``places``, float64, on the parameters' device. Sums over terms are taken in
            float64 where the loss takes outputs of that type.

        Raises:
            DataError: If there are no examples.
        """
        normaliser = 0.0
        sums = {
            name: torch.zeros(len(indices), dtype=torch.float64, device=self._parameters[name].device)
            for name, indices in places.items()
        }
        with evaluating(self._model):
            for batch in batches:
                batch_inputs, batch_targets = unpack(batch)
                if not count(batch_inputs):
                    continue
                for inputs, targets in pieces(batch_inputs, batch_targets, slice_size(batch_inputs)):
                    some = _Slice(self._model, self._loss, inputs, targets, self._memory)
                    normaliser += some.normaliser
                    for name, indices in places.items():
                        if len(indices):
                            weight = self._parameters[name]
                            sums[name] += some.changes(name, weight, indices.to(weight.device))
        (normaliser,) = distributed.sums(normaliser)
        if normaliser == 0:
            raise DataError("nothing to measure: the batches hold no examples that count for the loss")
        return {name: total / normaliser for name, total in distributed.total(sums).items()}


class _Slice:
    """Some examples that go through the network together.

    Attributes:
        normaliser: The loss's.
    """

    def __init__(self, model: nn.Module, loss: Loss, inputs: Inputs, targets: Any, memory: int) -> None:
        self._model, self._loss, self._inputs, self._targets = model, loss, inputs, targets
        with _Weighing() as weighing:
            self._outputs = call(model, inputs).detach()
        self.normaliser = loss.normaliser(self._outputs, targets)
        self._total = float(self._totals(self._outputs.unsqueeze(0)))
        self._shared: dict[str, Shared] = {}
        self._chains: dict[str, Chain | None] = {}
        room = memory // 2 if self._outputs.is_cuda else min(memory // 2, _STACK)
        self._together = max(1, min(_MOST, room // max(1, weighing.bytes)))
        # A chain works on pieces of its own, and only its outputs are stacked.
        self._chained = max(1, min(_MOST, room // max(1, _AGAIN * self._outputs.nbytes)))

    def changes(self, name: str, weight: Tensor, indices: Tensor) -> Tensor:
        """Total loss without a weight minus total loss with it, ``[weights]``."""
        values = weight.detach().reshape(-1)[indices]
        for way in (self._by_chain, self._by_unit, self._stacked):
            together = self._chained if way == self._by_chain else self._together
            if together > 1 and len(indices) > 1 and self._right(way, name, weight):
                found = self._all(way, name, weight, indices, -values)
                if found is not None:
                    return found
        found = self._all(self._one_by_one, name, weight, indices, -values)
        assert found is not None
        return found

    def _all(self, way: Way, name: str, weight: Tensor, indices: Tensor, changes: Tensor) -> Tensor | None:
        """Totals by one way, so many at a time; ``None`` where it fails on the way."""
        totals = []
        size = self._chained if way == self._by_chain else self._together
        for start in range(0, len(indices), size):
            part = slice(start, start + size)
            outputs = _tried(way, name, weight, indices[part], changes[part])
            if outputs is None:
                return None
            totals.append(self._totals(outputs) - self._total)
        return torch.cat(totals)

    def _right(self, way: Way, name: str, weight: Tensor) -> bool:
        """Whether a way gives what changing weights one by one gives, by more than a deletion changes them."""
        sizes = weight.detach().abs().reshape(-1)
        count = min(_TRIED, len(sizes))
        places = torch.linspace(0, len(sizes) - 1, count, device="cpu").long().to(sizes.device)
        size = 3 * float(sizes.square().mean().sqrt()) or 1.0
        changes = torch.full((len(places),), size, dtype=weight.dtype, device=weight.device)
        found = _tried(way, name, weight, places, changes)
        if found is None:
            return False
        expected = self._one_by_one(name, weight, places, changes)
        if found.shape != expected.shape:
            return False
        exact = self._outputs.double()
        theirs, mine = expected.double() - exact, found.double() - exact
        eps = torch.finfo(expected.dtype).eps if expected.is_floating_point() else 0.0
        tolerance = eps**0.5 * float(theirs.abs().max()) + 200 * eps * float(exact.abs().max())
        return bool(((mine - theirs).abs() <= tolerance).all())

    def _totals(self, outputs: Tensor) -> Tensor:
        """Total losses of stacked outputs, float64; taken in float64 too, where the loss takes such outputs."""
        wider = torch.promote_types(outputs.dtype, torch.float64)
        try:
            return self._loss.totals(outputs, self._targets, wider).detach().double()
        except Exception:
            if wider == outputs.dtype:
                raise
            return self._loss.totals(outputs, self._targets).detach().double()

    def _by_chain(self, name: str, weight: Tensor, indices: Tensor, changes: Tensor) -> Tensor:
        """The same where linear maps and functions of single numbers are all that follows."""
        if name not in self._chains:
            self._chains[name] = chain_after(self._model, self._inputs, weight)
        chain = self._chains[name]
        if chain is None:
            raise NotImplementedError(f"what follows {name} is not a chain")
        inside = weight[0].numel()
        return chain(indices // inside, indices % inside, changes).reshape(len(indices), *self._outputs.shape)

    def _by_unit(self, name: str, weight: Tensor, indices: Tensor, changes: Tensor) -> Tensor:
        """By what they change in the one unit that each reaches."""
        inside, shared = weight[0].numel(), self._shared.setdefault(name, Shared())

        def run(index: Tensor, change: Tensor) -> Tensor:
            shared.begin()
            with _Deleting(weight, index // inside, index % inside, change, shared) as mode:
                outputs = call(self._model, self._inputs)
            if not mode.used:
                raise NotImplementedError(f"{name} is used in a way that no rule covers")
            return outputs.together() if isinstance(outputs, Altered) else outputs

        return _over(run, indices, changes)

    def _stacked(self, name: str, weight: Tensor, indices: Tensor, changes: Tensor) -> Tensor:
        """With a stack of weights."""
        own, all_places = weight.detach(), torch.arange(weight.numel(), device=weight.device)

        def run(index: Tensor, change: Tensor) -> Tensor:
            there = (all_places == index).view(own.shape)
            return call(self._model, self._inputs, {name: torch.where(there, own + change, own)})

        return _over(run, indices, changes)

    def _one_by_one(self, name: str, weight: Tensor, indices: Tensor, changes: Tensor) -> Tensor:
        """With one network after another."""
        found = []
        for index, change in zip(indices.tolist(), changes, strict=True):
            other = weight.detach().clone()
            other.view(-1)[index] += change
            found.append(call(self._model, self._inputs, {name: other}).detach())
        return torch.stack(found)


Way = Callable[[str, Tensor, Tensor, Tensor], Tensor]
"""From a parameter, flat indices, and what is added to the weights there, to outputs ``[weights, *outputs]``."""


def _over(run: Callable[[Tensor, Tensor], Tensor], indices: Tensor, changes: Tensor) -> Tensor:
    stacked: Tensor = vmap(run)(indices.unsqueeze(1), changes.unsqueeze(1))
    return stacked.detach()


def _tried(way: Way, name: str, weight: Tensor, indices: Tensor, changes: Tensor) -> Tensor | None:
    """The outputs, or ``None`` where a network cannot be run in this way."""
    with warnings.catch_warnings():
        # Advice to whoever implements operators, not to users of a model that has one of them.
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        try:
            return way(name, weight, indices, changes)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # data-dependent code, missing rules, writing to what is not stacked
            return None


class _Weighing(TorchFunctionMode):
    """Adds up the bytes of everything that a network computes."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """So many."""
        return sum(self._seen.values())

    def __torch_function__(
        self, func: Function, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        """Call the function, and weigh what it gives."""
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple | list) else (found,):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self._seen[storage.data_ptr()] = storage.nbytes()
        return found


class _Deleting(TorchFunctionMode):
    """Adds to each use of a weight what a change of one of its entries adds there.

    Args:
        weight: Whose use is watched.
        unit: Number of the entry's row, ``[1]``.
        inside: Its flat index in that row, ``[1]``.
        change: What is added to the entry, ``[1]``.
        shared: What this stack of deletions shares with others.

    Attributes:
        used: Whether there was a use.
    """

    def __init__(self, weight: Tensor, unit: Tensor, inside: Tensor, change: Tensor, shared: Shared) -> None:
        super().__init__()
        self._weight, self._unit, self._inside, self._change = weight, unit, inside, change
        self._shared = shared
        self.used = False

    def __torch_function__(
        self, func: Function, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        """Call the function; what it gives is altered in one unit, if it applies the weight."""
        given = kwargs or {}
        if func is not F.linear and func not in _CONVOLUTIONS:
            return func(*args, **given)
        x, weight = (_argument(args, given, i, name) for i, name in enumerate(("input", "weight")))
        if weight is not self._weight and isinstance(x, Altered):
            return func(*args, **given)
        x = x.together() if isinstance(x, Altered) else x
        settings = {key: value for key, value in given.items() if key not in ("input", "weight")}
        outputs = self._shared.apply(func, x, weight, *args[2:], **settings)
        if weight is not self._weight:
            return outputs
        if x.ndim < weight.ndim:
            raise NotImplementedError("a layer without an axis of examples")
        self.used = True
        axis, share = self._share(func, x, args, given)
        was = outputs.index_select(axis, self._unit)
        return Altered(outputs, was, was + share.to(was.dtype), self._unit, self._shared, axis)

    def _share(self, func: Function, x: Tensor, args: Arguments, kwargs: Keywords) -> tuple[int, Tensor]:
        """The units' axis, and what is added to the unit."""
        if func is F.linear:
            return x.ndim - 1, x.index_select(-1, self._inside) * self._change
        places = self._weight[0, 0].numel()
        names = ("stride", "padding", "dilation", "groups")
        settings = {name: _argument(args, kwargs, i, name) for i, name in enumerate(names, 3)}
        groups = settings.pop("groups") or 1
        group = torch.div(self._unit * groups, len(self._weight), rounding_mode="floor")
        channel = group * self._weight.shape[1] + self._inside // places
        there = torch.arange(places, device=x.device) == self._inside % places
        kernel = (there * self._change).view(1, 1, *self._weight.shape[2:])
        settings = {name: value for name, value in settings.items() if value is not None}
        share: Tensor = func(x.index_select(1, channel), kernel.to(x.dtype), **settings)
        return 1, share


def _argument(args: Arguments, kwargs: Keywords, index: int, name: str) -> Any:
    return args[index] if len(args) > index else kwargs.get(name)
