"""Naming a statistic and its options, as criteria and users do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from prunekit.component import Tensors

if TYPE_CHECKING:
    from torch import Tensor


class Statistic:
    """A request for a statistic with options; hashable, equal by name and options.

    Examples:
        >>> Statistic("ggn_mc_diagonal", draws=4)
        Statistic('ggn_mc_diagonal', draws=4)
        >>> Statistic("gradient") == Statistic("gradient")
        True
    """

    __slots__ = ("name", "options")

    def __init__(self, name: str, **options: Any) -> None:
        self.name = name
        self.options = options

    @classmethod
    def of(cls, request: str | Statistic) -> Statistic:
        """Return the request itself, or the one of that name without options."""
        return request if isinstance(request, Statistic) else cls(request)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Statistic) and (self.name, self.options) == (other.name, other.options)

    def __hash__(self) -> int:
        return hash((self.name, tuple(sorted(self.options.items()))))

    def __repr__(self) -> str:
        options = "".join(f", {k}={v!r}" for k, v in self.options.items())
        return f"Statistic({self.name!r}{options})"


Request = str | Statistic
"""How a statistic is asked for."""

Statistics = Mapping[Request, Tensors]
"""Each request to ``{parameter: tensor}``."""


Function = Callable[[Any], "Tensor"]
"""From a tensor to a tensor."""


@runtime_checkable
class Mappable(Protocol):
    """Something that is made of tensors and knows them all."""

    def map(self, function: Function) -> object:
        """The same with the function applied to every tensor."""


class Detailed(dict[str, "Tensor"]):
    """A statistic with more than its tensor per parameter, as attributes: tensors or mappings of them.

    Attributes:
        remark: What a user should know about how it was computed; empty for nothing.
        zero_where_unseen: Whether its tensors are zero at weights that no example has reached; of an inverse they are not.
    """

    remark: str = ""
    zero_where_unseen: bool = True

    def map(self, function: Function) -> Self:
        """The same with the function applied to every tensor."""
        other = copy(self)
        for key, tensor in self.items():
            other[key] = function(tensor)
        for name, value in vars(self).items():
            setattr(other, name, mapped(value, function))
        return other


def mapped(value: object, function: Function) -> object:
    """A statistic or a part of one with the function applied to every tensor in it."""
    if isinstance(value, Mappable):  # before mappings, of which some are
        return value.map(function)
    if isinstance(value, Mapping):
        return {key: mapped(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(item, function) for item in value)
    return function(value) if hasattr(value, "device") else value


class Sampled(Detailed):
    """A statistic estimated from draws, one tensor per parameter, with its standard error beside it.

    Attributes:
        standard_error: One tensor per parameter.
    """

    def __init__(self, values: Tensors, standard_error: Tensors) -> None:
        super().__init__(values)
        self.standard_error = dict(standard_error)


class Estimates(dict[Request, Tensors]):
    """Statistics by request; a plain name also finds the only request of that name.

    Examples:
        >>> estimates = Estimates({Statistic("ggn_mc_diagonal", draws=4): {"w": 1.0}})
        >>> estimates["ggn_mc_diagonal"]
        {'w': 1.0}
    """

    def __missing__(self, key: str | Statistic) -> Tensors:
        wanted = Statistic.of(key)
        same = [k for k in self if Statistic.of(k).name == wanted.name]
        exact = [k for k in same if Statistic.of(k) == wanted]
        matches = exact or (same if isinstance(key, str) else [])
        if len(matches) == 1:
            return self[matches[0]]
        raise KeyError(f"{key!r}; there are {', '.join(map(repr, self)) or 'none'}")
