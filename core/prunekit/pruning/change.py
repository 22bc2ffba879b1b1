"""A step's change of the weights, which can be taken back bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from prunekit.masks.apply import zero

_SMALL = 1 << 20  # weights
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Kept:
    """Copies of the parameters of which a change keeps all in any case, so that they can be lent as they are.

    That is of small ones, and of those on a GPU, where finding out which weights are lost takes longer than to copy all.

    Attributes:
        copies: By name.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._own = {name: p.detach() for name, p in parameters.items() if not _large(p)}
        self._versions = [p._version for p in self._own.values()]
        self.copies = {name: p.clone() for name, p in self._own.items()}

    def put_back(self) -> list[str]:
        """Undo what has been done to the parameters meanwhile, and name those to which something has.

        On the CPU what NumPy and ``.data`` do is found too, which torch does not count.
        """
        found = []
        for (name, p), version in zip(self._own.items(), self._versions, strict=True):
            copy = self.copies[name]
            if p._version != version or (p.device.type == "cpu" and not _same(p, copy)):
                p.copy_(copy)
                found.append(name)
        return found


def _same(a: Tensor, b: Tensor) -> bool:
    """Bit by bit, by NumPy, which compares as fast as memory is read."""
    return np.array_equal(_bits(a), _bits(b))


def _large(parameter: Tensor) -> bool:
    return parameter.device.type == "cpu" and parameter.numel() > _SMALL


def _bits(tensor: Tensor) -> np.ndarray:
    return tensor.view(_BITS[tensor.element_size()]).numpy()


def _picked(tensor: Tensor, places: Tensor) -> Tensor:
    """Values at some places, by NumPy, which makes no list of the places, eight bytes each, on the way."""
    return torch.from_numpy(_bits(tensor)[places.numpy()]).view(tensor.dtype)


class Change:
    """Applies new values and masks to parameters in place, and keeps what stood there.

    Of a large parameter that only loses weights, the lost ones are kept; of one with new values, all.

    Args:
        parameters: Which change; the masks before are those with which weights are gone now.
        before: Masks before.
        after: Masks after, nested in those before.
        values: New values by parameter.
        kept: What is kept of them already.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
        kept: Kept,
    ) -> None:
        self._parameters, self._after, self._values = parameters, after, values
        self._lost: dict[str, tuple[Tensor, Tensor]] = {}
        self._whole = dict(kept.copies)
        for name, p in parameters.items():
            if name in self._whole:
                continue
            if name in values:
                self._whole[name] = p.detach().clone()
            else:
                places = (before[name] & ~after[name]).to(p.device)
                self._lost[name] = places, _picked(p.detach(), places)

    def apply(self) -> None:
        """Put the values and the zeros in place."""
        with torch.no_grad():
            for name, value in self._values.items():
                self._parameters[name].copy_(value)
        zero(self._parameters, {name: ~mask for name, mask in self._after.items()})

    def undo(self) -> None:
        """Put back what stood there, also after half of :meth:`apply`."""
        with torch.no_grad():
            for name, whole in self._whole.items():
                self._parameters[name].copy_(whole)
            for name, (places, lost) in self._lost.items():
                self._parameters[name].masked_scatter_(places, lost)

    def before(self) -> dict[str, Tensor]:
        """The parameters as they were, copies."""
        copies = {name: whole.clone() for name, whole in self._whole.items()}
        for name, (places, lost) in self._lost.items():
            copies[name] = self._parameters[name].detach().clone()
            copies[name].masked_scatter_(places, lost)
        return {name: copies[name] for name in self._parameters}

    def after(self) -> dict[str, Tensor]:
        """The parameters with the change, copies; whether or not it is applied."""
        changed = {}
        for name, p in self._parameters.items():
            value = self._values[name].to(p.dtype) if name in self._values else p.detach()
            changed[name] = value.masked_fill(~self._after[name].to(p.device), 0.0)
        return changed
