"""Blocks with what is prunable in them, where their weights are, and what has become of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from prunekit.masks.items import Items
from prunekit.masks.weights import Layer
from prunekit.observing.moment import Surroundings
from prunekit.pruning.sequential import Sequential
from prunekit.statistics.estimate import DEFAULT_MEMORY

_OWN = "block."
"""What names of parameters begin with inside :class:`prunekit.network.stages.Alone`."""


@dataclass(frozen=True)
class Block:
    """A block with the prunable weights in it.

    Attributes:
        name: The module's.
        names: Own name of a parameter, which begins with ``block.``, to its name in the network.
        layers: By their own names, in their order; they stand one after another.
    """

    name: str
    names: Mapping[str, str]
    layers: Sequence[Layer]

    @classmethod
    def of(cls, name: str, layers: Sequence[Layer]) -> Block:
        """The block of a name, with those of all layers that lie in it."""
        inside = [layer for layer in layers if layer.name.startswith(f"{name}.")]
        names = {_OWN + layer.name[len(name) + 1 :]: layer.name for layer in inside}
        own, start = [], 0
        for key, layer in zip(names, inside, strict=True):
            own.append(replace(layer, name=key, start=start))
            start += layer.size
        return cls(name, names, own)

    def own(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """What belongs to parameters of the network, by the block's own names."""
        return {key: named[name] for key, name in self.names.items() if name in named}


@dataclass(frozen=True)
class Done:
    """What a block has become.

    Attributes:
        masks: Parameter to what is kept.
        values: Parameter to its values, of those whose survivors have new ones.
        predicted: The change of the loss that the criterion predicts for it.
    """

    masks: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    predicted: float | None = None


class Finished(Protocol):
    """Keeps what blocks have become, so that a step that is stopped continues with the next block."""

    def get(self, block: str) -> Done | None:
        """What a block has become, if that is known."""
        ...

    def put(self, block: str, done: Done) -> None:
        """Keep what a block has become."""
        ...


class Home:
    """Where the weights of blocks are: in the network, unless somebody brings them when their turn comes."""

    always = True
    """Whether they are in the network all the time."""

    @contextmanager
    def present(self, block: str) -> Iterator[None]:
        """Within it, the block has its weights."""
        yield

    def settle(self, block: str) -> None:
        """Called when a block is what it will be, before those after it are run."""


@dataclass(frozen=True)
class Scene:
    """Everything that stays the same while a network is pruned block by block.

    Attributes:
        surroundings: The model, the loss, and what builds statistics.
        settings: Which blocks, and what they see.
        parameters: The prunable ones.
        layers: The same as layers.
        blocks: By name.
        warn: Told of what a user should know, with its kind.
        watch: Told of each choice of the selector.
        home: Where the weights of blocks are.
    """

    surroundings: Surroundings
    settings: Sequential
    parameters: Mapping[str, Tensor]
    layers: Sequence[Layer]
    blocks: Mapping[str, Block]
    warn: Callable[[str, str], None]
    watch: Callable[[Items, Tensor], None]
    home: Home

    @property
    def memory(self) -> int:
        """Bytes for activations and products."""
        return self.surroundings.memory or DEFAULT_MEMORY
