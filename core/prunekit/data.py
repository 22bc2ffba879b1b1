"""What a data set hands to the engine: whole splits as tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from prunekit.component import Component

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor, nn

Task = Literal["classification", "regression"]


@dataclass(frozen=True)
class DataInfo:
    """What a model needs to know of the data to size its ends.

    Attributes:
        input_shape: Shape of one example.
        outputs: Number of classes, or of target values per example.
        task: ``classification`` or ``regression``.
    """

    input_shape: tuple[int, ...]
    outputs: int
    task: Task

    @property
    def features(self) -> int:
        """Number of values in one example."""
        count = 1
        for size in self.input_shape:
            count *= size
        return count


@dataclass(frozen=True)
class Split:
    """Examples and targets, first axis the example."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: Tensor) -> Split:
        """The examples at these indices, in this order."""
        indices = indices.to(self.x.device)
        return Split(self.x.index_select(0, indices), self.y.index_select(0, indices))

    def to(self, device: torch.device, dtype: torch.dtype) -> Split:
        """Move; floating-point tensors also take ``dtype``, class indices and tokens keep theirs."""

        def move(t: Tensor) -> Tensor:
            return t.to(device, dtype if t.is_floating_point() else None)

        return Split(move(self.x), move(self.y))


@dataclass(frozen=True)
class Splits:
    """A data set in memory.

    Attributes:
        train: The split that training and statistics draw from.
        valid: For the choice of the best epoch; ``None`` if there is none.
        test: Held out; ``None`` if there is none.
        task: Decides the default loss.
        outputs: Classes, or target values per example; found from the targets when ``None``.
        augment: Batched augmentation ``(x, generator) -> x`` for training only.
    """

    train: Split
    valid: Split | None = None
    test: Split | None = None
    task: Task = "classification"
    outputs: int | None = None
    augment: Callable[[Tensor, Generator], Tensor] | None = None

    @property
    def info(self) -> DataInfo:
        """Shape of the data as a model needs it."""
        outputs = self.outputs
        if outputs is None:
            splits = [s for s in (self.train, self.valid, self.test) if s is not None and len(s)]
            if self.task == "classification":
                outputs = max(int(s.y.max()) for s in splits) + 1
            else:
                outputs = self.train.y[0].numel()
        return DataInfo(tuple(self.train.x.shape[1:]), outputs, self.task)

    def limited(self, train: int | None, test: int | None) -> Splits:
        """The same with at most so many training and test examples, the first ones."""
        shorter = replace(self, train=Split(self.train.x[:train], self.train.y[:train]))
        if self.test is None:
            return shorter
        return replace(shorter, test=Split(self.test.x[:test], self.test.y[:test]))

    def to(self, device: torch.device, dtype: torch.dtype) -> Splits:
        """Move every split."""

        def move(split: Split | None) -> Split | None:
            return split.to(device, dtype) if split is not None else None

        return replace(self, train=self.train.to(device, dtype), valid=move(self.valid), test=move(self.test))


class Model(Component, ABC):
    """Builds a network. ``build`` runs under a seeded torch random state."""

    kind = "model"

    @abstractmethod
    def build(self, data: DataInfo) -> nn.Module:
        """Return a freshly initialised network for data of this shape, on CPU in float32."""


class Dataset(Component, ABC):
    """Loads a data set into tensors."""

    kind = "dataset"

    @abstractmethod
    def load(self, seed: int) -> Splits:
        """Read everything into CPU tensors.

        Args:
            seed: The run's seed, for splits that are drawn at random.

        Raises:
            DataError: If files are missing (say which, and where to put them) or damaged.
        """
