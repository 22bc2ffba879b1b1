"""What a data set hands to the engine: whole splits as tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from prunekit.component import Component
from prunekit.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Generator, Tensor, nn

Task = Literal["classification", "regression"]

_MOST_CLASSES = 2**31


@dataclass(frozen=True)
class DataInfo:
    """What a model needs to know about the data to size its inputs and outputs.

    Attributes:
        input_shape: Shape of one example; for a mapping, of its first tensor.
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
    """Examples and targets; the first axis is the example.

    Attributes:
        x: One tensor, or a mapping of tensors: the model's keyword arguments.
        y: The targets.
    """

    x: Tensor | Mapping[str, Tensor]
    y: Tensor

    def __post_init__(self) -> None:
        # torch does not look into mappings of other classes, such as transformers' BatchEncoding.
        if isinstance(self.x, Mapping) and not isinstance(self.x, dict):
            object.__setattr__(self, "x", dict(self.x))

    def __len__(self) -> int:
        return len(self.inputs[0])

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors of ``x``, in order."""
        return tuple(self.x.values()) if isinstance(self.x, Mapping) else (self.x,)

    def take(self, indices: Tensor) -> Split:
        """The examples at these indices, in this order."""
        indices = indices.to(self.y.device)
        return self._each(lambda t: t.index_select(0, indices))

    def first(self, examples: int | None) -> Split:
        """The first examples; ``None`` for all."""
        return self._each(lambda t: t[:examples])

    def to(self, device: torch.device, dtype: torch.dtype) -> Split:
        """Move; floating-point tensors also take ``dtype``, class indices and tokens keep theirs.

        Tensors made in inference mode are copied, since no graph could hold them.
        """

        def move(t: Tensor) -> Tensor:
            moved = t.to(device, dtype if t.is_floating_point() else None)
            return moved.clone() if moved.is_inference() else moved

        return self._each(move)

    def _each(self, function: Callable[[Tensor], Tensor]) -> Split:
        """The same with the function applied to every tensor."""
        x = self.x
        moved = {key: function(t) for key, t in x.items()} if isinstance(x, Mapping) else function(x)
        return Split(moved, function(self.y))


@dataclass(frozen=True)
class Splits:
    """A data set in memory.

    Attributes:
        train: The split that training and statistics draw from.
        valid: Validation split, for the choice of the best epoch; ``None`` if there is none.
        test: Held out; ``None`` if there is none.
        task: Decides the default loss.
        loss: Name of the loss that the targets call for, where the task does not determine it.
        outputs: Classes, or target values per example; found from the targets when ``None``.
        augment: Batched augmentation ``(x, generator) -> x`` for training only; x is the tensor or the mapping
            of a batch's inputs, and new tensors are returned.
    """

    train: Split
    valid: Split | None = None
    test: Split | None = None
    task: Task = "classification"
    outputs: int | None = None
    augment: Callable[[Any, Generator], Any] | None = None
    loss: str | None = None

    @property
    def info(self) -> DataInfo:
        """Shape of the data as a model needs it, where every label is a class."""
        return self.info_for(None)

    def info_for(self, counted: Callable[[Tensor], Tensor] | None) -> DataInfo:
        """Shape of the data as a model needs it.

        Args:
            counted: Which targets count for the loss, as ``Loss.counted``: a label that does not is not a class.

        Raises:
            DataError: If a label is too large to be a class.
        """
        outputs = self.outputs
        if outputs is None and self.task == "classification":
            outputs = max((int(y.max()) for y in self.labels(counted) if y.numel()), default=0) + 1
            if outputs > _MOST_CLASSES:
                raise DataError(
                    f"labels are classes, counted from 0, and go up to {outputs - 1}; number the classes without gaps, or, "
                    "where such numbers are values, store floating-point targets"
                )
        elif outputs is None:
            outputs = self.train.y[0].numel()
        return DataInfo(tuple(self.train.inputs[0].shape[1:]), outputs, self.task)

    def labels(self, counted: Callable[[Tensor], Tensor] | None) -> list[Tensor]:
        """The targets of each split, without those that do not count."""
        targets = [s.y for s in (self.train, self.valid, self.test) if s is not None and len(s)]
        return targets if counted is None else [y[counted(y)] for y in targets]

    def limited(self, train: int | None, test: int | None) -> Splits:
        """The same with at most this many training and test examples, the first ones."""
        shorter = replace(self, train=self.train.first(train))
        if self.test is None:
            return shorter
        return replace(shorter, test=self.test.first(test))

    def to(self, device: torch.device, dtype: torch.dtype) -> Splits:
        """Move every split."""

        def move(split: Split | None) -> Split | None:
            return split.to(device, dtype) if split is not None else None

        return replace(self, train=self.train.to(device, dtype), valid=move(self.valid), test=move(self.test))


@dataclass(frozen=True)
class Skeleton:
    """A network without weights.

    Attributes:
        network: Parameters are on the device ``meta``; buffers that no file holds have their values.
        folder: Holds safetensors files with its weights, by its own names, and everything else that belongs to it.
    """

    network: nn.Module
    folder: Path


class Model(Component, ABC):
    """Builds a network. ``build`` runs under a seeded torch random state."""

    kind = "model"
    sets_dtype: ClassVar[bool] = False
    """Whether an option ``dtype`` says in which type the run computes, where its own is left out."""

    @abstractmethod
    def build(self, data: DataInfo) -> nn.Module:
        """Return a freshly initialised network for data of this shape, on CPU in float32."""

    def skeleton(self) -> Skeleton | None:
        """The network without its weights, and the files that hold them, for networks that are larger than the memory.

        ``None``, the default, if there are no such files.
        """
        return None


class Dataset(Component, ABC):
    """Loads a data set into tensors."""

    kind = "dataset"

    @abstractmethod
    def load(self, seed: int) -> Splits:
        """Read everything into CPU tensors.

        Args:
            seed: The spec's ``split_seed``, for splits that are drawn at random; not the run's seed.

        Raises:
            DataError: If files are missing (say which, and where to put them) or damaged.
        """
